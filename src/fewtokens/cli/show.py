"""`fewtokens show`: which region of the video each token stands for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import typer
from rich.markup import escape

from fewtokens.cli.command import Mode, verb
from fewtokens.cli.console import log
from fewtokens.cli.errors import check_exists
from fewtokens.cli.options import INPUT, OUTPUT, EncoderOptions, MethodOptions, ReadOptions, RunOptions, names_of
from fewtokens.cli.pipelines import PATCHES, current_names, make_pipeline, read_video
from fewtokens.cli.progress import progress
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


def _is_file(path: Path) -> bool:
    return path.suffix == ".safetensors"


@verb(
    "fewtokens show clip.safetensors --out clip.html",
    'fewtokens show clip.mp4 --with "evs(keep=0.2)" --out kept.mp4',
    modes=(
        Mode(
            "token files", lambda values: all(map(_is_file, values["inputs"])),
            names_of(ReadOptions, EncoderOptions, MethodOptions, RunOptions),
            "have no meaning for a token file, which says how it was made",
        ),
        Mode(
            "not one token file", lambda values: sum(map(_is_file, values["inputs"])) != 1, ("video",),
            "is the video of one token file",
        ),
        Mode(
            "page", lambda values: values["target"].suffix == ".html", ("style",),
            "is for pictures and videos; a page has its own ways to look",
        ),
        PATCHES,
    ),
)  # fmt: skip
def show(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="FILE.safetensors|VIDEO...", help="Token files, or videos to tokenize.")
    ],
    target: Annotated[Path, typer.Option("--out", help="A .png, .html, .mp4 or .gif file.", rich_help_panel=OUTPUT)],
    reading: ReadOptions,
    encoding: EncoderOptions,
    run: RunOptions,
    method: MethodOptions = MethodOptions(spec="tome"),
    video: Annotated[
        Path | None,
        typer.Option("--video", help="The video of a token file, if it has moved.", rich_help_panel=INPUT),
    ] = None,
    style: Annotated[
        str,
        typer.Option(
            "--style",
            help="outline, fill, mean (each token in its mean color), or maps (soft weights).",
            rich_help_panel=OUTPUT,
        ),
    ] = "fill",
) -> None:
    """Draw which region of the video each token stands for: a picture, a page to step through, or a video.

    A token file is drawn with the reading and the method that it was made with.
    """
    check_exists(*inputs, video)
    import torch

    from fewtokens.show import check_overlay, write_overlay, write_page

    check_overlay(target, style)
    if len(inputs) > 1 and target.suffix != ".html":
        raise ValueError(f"{len(inputs)} inputs fit on a page, so --out must end in .html, not {target.suffix}")
    for path in [*inputs, *([] if video is None else [video])]:
        if target.exists() and path.samefile(target):
            raise ValueError(f"--out {target} is an input and would be overwritten; give another name")
    pipeline = None
    shown: list[tuple[Video, Tokens]] = []
    with progress("frames", None) as advance:
        for path in inputs:
            if _is_file(path):
                shown.append(_from_file(path, video))
                continue
            if pipeline is None:
                pipeline = make_pipeline(method, encoding, run)
                assert pipeline.encoder is not None
                pipeline.encoder.progress = advance
            clip = read_video(path, reading)
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
        write_overlay(target, clip.frames, tokens, times=clip.times, fps=_rate(clip), style=style, name=clip.name)
    log.print(f"wrote {escape(str(target))}", highlight=False)


def _from_file(path: Path, video: Path | None) -> tuple[Video, Tokens]:
    """The tokens of a file and the frames that they were made from."""
    from fewtokens.core.plain import conform
    from fewtokens.core.tokens import Tokens

    tokens = Tokens.load(path)
    if "source" not in tokens.meta or "reading" not in tokens.meta:
        raise ValueError(f"{path} does not say which video it came from; give the video itself instead")
    source: Source = conform(tokens.meta["source"], Source, f"{path}: its source")
    noted = conform(tokens.meta["reading"], dict[str, Any], f"{path}: its reading")
    reading: dict[str, Any] = conform(current_names(noted), ReadOptions, f"{path}: its reading")
    if absent := [name for name in names_of(ReadOptions) if name not in reading]:
        raise ValueError(f"{path}: its reading has no {', '.join(absent)}")
    where = video or Path(source["path"])
    if not where.exists():
        raise ValueError(f"{path} came from {where}, which does not exist; give its place by --video")
    now = source_now(where)
    if now["bytes"] != source["bytes"] and source["bytes"]:
        raise ValueError(f"{where} has {now['bytes']} bytes, {path} came from one of {source['bytes']}")
    if video is None and "mtime_ns" in source and now["mtime_ns"] != source["mtime_ns"]:
        raise ValueError(f"{where} has changed since {path} was made; give --video {where} if it shows the same")
    return read_video(where, ReadOptions(**reading)), tokens


def _rate(clip: Video) -> float:
    """Frames each second at which the frames shown last as long as in the video."""
    span = float(clip.times[-1] - clip.times[0])
    return max(1.0, (len(clip) - 1) / span) if span > 0 else 4.0


def _clip(name: str, video: Video, tokens: Tokens) -> Clip:
    from fewtokens.show import Clip, Result

    count = int(tokens.count[0])
    numbers: dict[str, Any] = {"tokens": count, "retention": count / tokens.grid.cells}
    spec = str(tokens.meta.get("spec", "")) or "all tokens"
    result = Result(name=spec.split("(")[0], spec=spec, tokens=tokens, frames=None, numbers=numbers)
    return Clip(name=name, frames=video.frames, times=video.times, results=[result])
