"""`fewtokens show`: which region of the video each token stands for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

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
    Reading,
    SeedOption,
    SizeOption,
    SpecOption,
    StartOption,
    StreamOption,
    TruncatedOption,
    log,
    make_pipeline,
    read_video,
    unused,
    verb,
)
from fewtokens.cli.resume import distinct_names, source_now

if TYPE_CHECKING:
    from fewtokens.core.tokens import Tokens
    from fewtokens.show import Clip
    from fewtokens.video import Video


class _Source(TypedDict):
    path: str
    bytes: int | None


class Source(_Source, total=False):
    """The "source" of a token file; earlier versions noted no time."""

    mtime_ns: int


app = typer.Typer(add_completion=False)


@app.command(
    epilog="Examples:  [bold]fewtokens show clip.safetensors --out clip.html[/bold]   |   "
    '[bold]fewtokens show clip.mp4 --with "evs(keep=0.2)" --out kept.mp4[/bold]'
)
@verb
def show(
    context: typer.Context,
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
    _check_options(context, inputs, target)
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
        names = [clip.name for clip, _ in shown]
        if len(set(names)) < len(names):
            names = distinct_names(inputs)
        clips = [_clip(name, clip, tokens) for name, (clip, tokens) in zip(names, shown, strict=True)]
        write_page(clips, target, title="Few tokens")
    else:
        ((clip, tokens),) = shown
        write_overlay(target, clip.frames, tokens, times=clip.times, fps=_rate(clip), style=style)
    log.print(f"wrote {escape(str(target))}", highlight=False)


# What a token file says of itself.
_OF_VIDEOS = (
    "encoder", "spec", "keep", "frames", "fps", "size", "start", "end", "stream", "allow_truncated", "batch", "device",
    "dtype", "seed",
)  # fmt: skip


def _check_options(context: typer.Context, inputs: list[Path], target: Path) -> None:
    """Raises a ValueError for options that mean nothing here, and where an input would be overwritten."""
    files = [path for path in inputs if path.suffix == ".safetensors"]
    if len(files) == len(inputs):
        unused(context, "have no meaning for a token file, which says how it was made", *_OF_VIDEOS)
    if len(files) != 1:
        unused(context, "is the video of one token file", "video")
    if target.suffix == ".html":
        unused(context, "is for pictures and videos; a page has its own ways to look", "style")
    video = context.params["video"]
    for path in [*inputs, *([] if video is None else [video])]:
        if path.exists() and target.exists() and path.samefile(target):
            raise ValueError(f"--out {target} is an input and would be overwritten; give another name")


def _from_file(path: Path, video: Path | None) -> tuple[Video, Tokens]:
    """The tokens of a file and the frames that they were made from."""
    from fewtokens.core.plain import conform
    from fewtokens.core.tokens import Tokens

    tokens = Tokens.load(path)
    if "source" not in tokens.meta or "reading" not in tokens.meta:
        raise ValueError(f"{path} does not say which video it came from; give the video itself instead")
    source: Source = conform(tokens.meta["source"], Source, f"{path}: its source")
    reading: dict[str, Any] = conform(tokens.meta["reading"], Reading, f"{path}: its reading")
    where = video or Path(source["path"])
    if not where.exists():
        raise ValueError(f"{path} came from {where}, which is not there; say --video WHERE_IT_IS")
    now = source_now(where)
    if now["bytes"] != source["bytes"] and source["bytes"]:
        raise ValueError(f"{where} has {now['bytes']} bytes, {path} came from one of {source['bytes']}")
    if video is None and "mtime_ns" in source and now["mtime_ns"] != source["mtime_ns"]:
        raise ValueError(f"{where} has changed since {path} was made; say --video {where} if it shows the same")
    return read_video(where, **reading), tokens


def _rate(clip: Video) -> float:
    """Frames each second at which the frames shown last as long as in the video."""
    span = float(clip.times[-1] - clip.times[0])
    return max(1.0, (len(clip) - 1) / span) if span > 0 else 4.0


def _clip(name: str, video: Video, tokens: Tokens) -> Clip:
    from fewtokens.show import Clip, Result

    count = int(tokens.count[0])
    numbers: dict[str, Any] = {"tokens": count, "share": count / tokens.grid.cells}
    spec = str(tokens.meta.get("spec", "")) or "all tokens"
    result = Result(name=spec.split("(")[0], spec=spec, tokens=tokens, frames=None, numbers=numbers)
    return Clip(name=name, frames=video.frames, times=video.times, results=[result])
