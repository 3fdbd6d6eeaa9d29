"""`fewtokens show`: which region of the video each token stands for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.common import (
    BatchOption,
    DeviceOption,
    DtypeOption,
    EncoderOption,
    EndOption,
    FpsOption,
    FramesOption,
    KeepOption,
    SeedOption,
    SizeOption,
    SpecOption,
    StartOption,
    StreamOption,
    TruncatedOption,
    log,
    make_pipeline,
    read_video,
    verb,
)

if TYPE_CHECKING:
    from fewtokens.show import Clip
    from fewtokens.tokens import Tokens
    from fewtokens.video import Video

app = typer.Typer()


@app.command(
    epilog="Examples:  [bold]fewtokens show clip.safetensors --out clip.html[/bold]   |   "
    '[bold]fewtokens show clip.mp4 --with "evs(keep=0.2)" --out kept.mp4[/bold]'
)
@verb
def show(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="FILE.safetensors|VIDEO...", help="Token files, or videos to tokenize.")
    ],
    target: Annotated[Path, typer.Option("--out", help="A .png, .html, .mp4 or .gif.")],
    video: Annotated[
        Path | None, typer.Option("--video", help="The video of a token file, where it has moved.")
    ] = None,
    style: Annotated[
        str,
        typer.Option("--style", help="outline, fill, mean (each token in its mean colour), or maps (soft weights)."),
    ] = "fill",
    encoder: EncoderOption = "patches",
    spec: SpecOption = "tome",
    keep: KeepOption = None,
    frames: FramesOption = None,
    fps: FpsOption = None,
    size: SizeOption = 224,
    start: StartOption = 0.0,
    end: EndOption = None,
    stream: StreamOption = None,
    allow_truncated: TruncatedOption = False,
    batch: BatchOption = 32,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    seed: SeedOption = 0,
) -> None:
    """Draw which region of the video each token stands for: a picture, a page to step through, or a video.

    For a token file the options of the reading and the method are those it was made with.
    """
    import torch

    from fewtokens.show import check_overlay, write_overlay, write_page

    check_overlay(target, style)
    if len(inputs) > 1 and target.suffix != ".html":
        raise ValueError(f"{len(inputs)} inputs fit on a page, so --out must end in .html, not {target.suffix}")
    pipeline = None
    shown: list[tuple[Video, Tokens]] = []
    for path in inputs:
        if path.suffix == ".safetensors":
            shown.append(_from_file(path, video))
            continue
        if pipeline is None:
            pipeline = make_pipeline(spec, keep, seed, encoder, device, dtype, batch)
        clip = read_video(
            path,
            frames=frames,
            fps=fps,
            size=size,
            start=start,
            end=end,
            stream=stream,
            allow_truncated=allow_truncated,
        )
        with torch.inference_mode():
            shown.append((clip, pipeline(clip.frames, clip.times).to("cpu")))
    if target.suffix == ".html":
        write_page([_clip(clip, tokens) for clip, tokens in shown], target, title="Few tokens")
    else:
        ((clip, tokens),) = shown
        write_overlay(target, clip.frames, tokens, times=clip.times, fps=_rate(clip), style=style)
    log.print(f"wrote {escape(str(target))}", highlight=False)


def _from_file(path: Path, video: Path | None) -> tuple[Video, Tokens]:
    """The tokens of a file and the frames that they were made from."""
    from fewtokens.tokens import Tokens

    tokens = Tokens.load(path)
    source, reading = tokens.meta.get("source"), tokens.meta.get("reading")
    if not isinstance(source, dict) or not isinstance(reading, dict):
        raise ValueError(f"{path} does not say which video it came from; give the video itself instead")
    where = video or Path(source["path"])
    if not where.exists():
        raise ValueError(f"{path} came from {where}, which is not there; say --video WHERE_IT_IS")
    if where.is_file() and source["bytes"] and where.stat().st_size != source["bytes"]:
        raise ValueError(f"{where} has {where.stat().st_size} bytes, {path} came from a file of {source['bytes']}")
    return read_video(where, **reading), tokens


def _rate(clip: Video) -> float:
    """Frames each second at which the frames shown last as long as in the video."""
    span = float(clip.times[-1] - clip.times[0])
    return max(1.0, (len(clip) - 1) / span) if span > 0 else 4.0


def _clip(video: Video, tokens: Tokens) -> Clip:
    from fewtokens.show import Clip, Result

    count = int(tokens.count[0])
    numbers: dict[str, Any] = {"tokens": count, "share": count / tokens.grid.cells}
    spec = str(tokens.meta.get("spec", "")) or "all tokens"
    result = Result(name=spec.split("(")[0], spec=spec, tokens=tokens, frames=None, numbers=numbers)
    return Clip(name=video.name, frames=video.frames, times=video.times, results=[result])
