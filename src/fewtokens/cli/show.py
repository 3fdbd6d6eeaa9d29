"""`fewtokens show`: draws the region of the video that each token stands for."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypedDict

import typer
from rich.markup import escape

from fewtokens.cli.command import Mode, verb
from fewtokens.cli.console import log, note
from fewtokens.cli.errors import check_exists, refuse
from fewtokens.cli.options import (
    ENCODER,
    INPUT,
    METHOD,
    OUTPUT,
    Check,
    EncoderOptions,
    KeepOption,
    ReadOptions,
    RunOptions,
    check_specs,
    check_tokenizer,
    find_tokenizer,
    names_of,
)
from fewtokens.cli.pipelines import PATCHES, check_reading, current_names, make_pipelines, read_video
from fewtokens.cli.progress import progress
from fewtokens.cli.resume import Inputs, distinct_names, source_now
from fewtokens.cli.tokenizer_files import StoredTokenizers
from fewtokens.cli.video_parts import VideoParts
from fewtokens.core.checks import DOCUMENTS, check_comparison, check_overlay

if TYPE_CHECKING:
    from fewtokens.core.encoder import Encoder
    from fewtokens.core.pipeline import Pipeline
    from fewtokens.core.tokens import Tokens
    from fewtokens.show import Clip
    from fewtokens.video import Video
    from fewtokens.video.sound import Sound

# Of the frames that an .mp4 is drawn on.
_MAX_BYTES = 2**30


class _Shown(NamedTuple):
    """The tokens of one input with their frames; `encoder` is None for a token file."""

    path: Path
    video: Video
    tokens: Tokens
    encoder: Encoder | None


class _Source(TypedDict):
    path: str
    bytes: int | None


class Source(_Source, total=False):
    """The "source" of a token file; earlier versions did not save the time."""

    mtime_ns: int


def _is_file(path: Path) -> bool:
    return path.suffix == ".safetensors"


@verb(
    "fewtokens show clip.safetensors --out clip.html",
    'fewtokens show clip.mp4 --with "evs(keep=0.2)" --out kept.mp4',
    'fewtokens show clip.mp4 --with "tome(keep=0.1)" --with "evs(keep=0.1)" --out compare.png',
    "fewtokens show clip.mp4 --tokenizer run/tokenizer --out codes.png",
    modes=(
        Mode(
            "token files", lambda values: all(map(_is_file, values["inputs"])),
            (*names_of(EncoderOptions, RunOptions), "specs", "keep"),
            "have no effect on token files, which contain these settings",
        ),
        Mode(
            "not one token file", lambda values: sum(map(_is_file, values["inputs"])) != 1, ("video",),
            "require a single token file",
        ),
        Mode(
            "page", lambda values: values["target"].suffix in DOCUMENTS, ("style",),
            "only apply to images and videos",
        ),
        Mode(
            "comparison", lambda values: len(values["inputs"]) > 1 or len(values["specs"] or ()) > 1, ("style",),
            "have no effect on a comparison",
        ),
        Mode(
            "tokenizer", lambda values: values["tokenizer"] is not None,
            (*names_of(EncoderOptions), "specs", "keep", "style"), "have no effect with --tokenizer",
        ),
        PATCHES,
    ),
)  # fmt: skip
def show(
    context: typer.Context,
    inputs: Annotated[
        list[Path], typer.Argument(metavar="FILE.safetensors|VIDEO", help="Token files, or videos to tokenize.")
    ],
    target: Annotated[
        Path,
        typer.Option(
            "--out",
            help="Output file: .png, .gif, .mp4, .html for a page, .rrd for the viewer of Rerun, or .fiftyone for a "
            "folder that FiftyOne imports.",
            rich_help_panel=OUTPUT,
        ),
    ],
    reading: ReadOptions,
    encoding: EncoderOptions,
    run: RunOptions,
    specs: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="SPEC",
            help="Spec of the methods; repeat it to compare several. Default: tome.",
            rich_help_panel=METHOD,
        ),
        Check(check_specs),
    ] = None,
    keep: KeepOption = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            help="Folder or hub id of a tokenizer: draw its tokens. Default for encoded videos: that in the header.",
            rich_help_panel=ENCODER,
        ),
        Check(check_tokenizer, find_tokenizer),
    ] = None,
    video: Annotated[
        Path | None,
        typer.Option(
            "--video",
            help="Path of the video of a token file, if it was moved or the file has no path.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    style: Annotated[
        str,
        typer.Option(
            "--style",
            help="outline, fill, mean (mean color of each token) or maps (attribution weights).",
            rich_help_panel=OUTPUT,
        ),
    ] = "fill",
) -> None:
    """Draw the region of the video that each token stands for, as an image, a page, a video, a recording or boxes.

    Token files contain the settings and the path of their video. Videos are tokenized first. Several methods on one
    video, and several token files of one video, are drawn side by side, on a page (.html), in a recording (.rrd)
    or as boxes (.fiftyone); several videos require a page. An .mp4 has the sound of its source and, for a single
    method, its size. With the encoder patches, the frames rebuilt from the tokens and their PSNR are included.

    For a file of `fewtokens encode`, or with --tokenizer, the video is encoded by the tokenizer: of tokens of queries
    the attention is drawn, of others the codes of each cell over time.
    """
    check_exists(*inputs, video)
    check_reading(reading)
    Inputs(*inputs, video).check_output(target)
    encoded = [path for path in inputs if _is_file(path) and _is_encoded(path)]
    if encoded or tokenizer is not None:
        if len(inputs) > 1 or target.suffix in DOCUMENTS:
            raise ValueError("--tokenizer and encoded videos are for a single video, written as .png, .gif or .mp4")
        check_overlay(target, "fill")
        if encoded:
            refuse(context, [*names_of(ReadOptions), "style"], f"have no effect on {inputs[0]}, an encoded video")
        elif _is_file(inputs[0]):
            raise ValueError(f"{inputs[0]}: a token file, which no tokenizer made; omit --tokenizer")
        _draw_tokenizer(inputs[0], target, video, tokenizer, reading, run)
        log.print(f"wrote {escape(str(target))}", highlight=False)
        return
    specs = specs or ["tome"]
    videos = [path for path in inputs if not _is_file(path)]
    check_overlay(target, style)
    if target.suffix != ".html" and (len(videos) > 1 or 0 < len(videos) < len(inputs)):
        raise ValueError(f"--out must end in .html to show {len(inputs)} inputs, got {target}")
    if len(inputs) > 1 or len(specs) > 1:
        check_comparison(target, len(inputs) - len(videos) + len(videos) * len(specs))
    import torch

    from fewtokens.show import frame_rate, write_comparison, write_overlay, write_page

    shown: list[_Shown] = []
    pipelines: list[Pipeline] = []
    with progress("frames", None) as advance:
        for path in inputs:
            if _is_file(path):
                shown.append(_from_file(path, video, reading, None if videos else context))
                continue
            if not pipelines:
                pipelines = make_pipelines(specs, keep, encoding, run)
                assert pipelines[0].encoder is not None
                pipelines[0].encoder.progress = advance
            clip = read_video(path, reading)
            for pipeline in pipelines:
                with torch.inference_mode():
                    tokens = pipeline(clip).to("cpu")
                shown.append(_Shown(path, clip, tokens, pipeline.encoder))
    if len(shown) == 1 and target.suffix not in DOCUMENTS:
        ((_, clip, tokens, _),) = shown
        drawn, sound = (_at_source_size(clip, reading), _sound_of(clip)) if target.suffix == ".mp4" else (clip, None)
        write_overlay(
            target,
            drawn.frames,
            tokens,
            times=clip.times,
            fps=frame_rate(clip),
            style=style,
            name=clip.name,
            sound=sound,
        )
    else:
        with torch.inference_mode():
            clips = _clips(shown)
        if target.suffix == ".html":
            write_page(clips, target)
        elif len(clips) > 1:
            raise ValueError(f"--out must end in .html to show tokens of different videos or frames, got {target}")
        else:
            source = shown[0].video
            sound = _sound_of(source) if target.suffix == ".mp4" else None
            write_comparison(clips[0], target, fps=frame_rate(source), sound=sound)
    log.print(f"wrote {escape(str(target))}", highlight=False)


def _at_source_size(clip: Video, reading: ReadOptions) -> Video:
    """The same frames at the size of the source, unless they need much memory."""
    import numpy as np

    from fewtokens.video import read

    if clip.path is None:
        return clip
    saved = clip.reading or {}
    options = {name: saved.get(name, getattr(reading, name)) for name in ("video_stream", "allow_truncated")}
    height, width = read(clip.path, pick=lambda _: np.zeros(1, dtype=np.int64), **options).size
    needed = 3 * height * width * len(clip)
    if needed > _MAX_BYTES:
        note(f"drawn at {clip.size[1]} x {clip.size[0]} pixels:",
            f"{len(clip)} frames of {width} x {height} need {needed / 2**30:.1f} GiB")  # fmt: skip
        return clip
    seconds = clip.times.numpy()
    return read(clip.path, pick=lambda every: np.abs(every[:, None] - seconds).argmin(0), **options)


def _sound_of(clip: Video) -> Sound | None:
    """The sound of the source during these frames; None if it has none, or if they are shown at another speed."""
    import torch

    from fewtokens.show import frame_rate
    from fewtokens.video.sound import Sound, has_sound

    if clip.path is None or len(clip) < 2 or not has_sound(clip.path):
        return None
    rate, start = frame_rate(clip), float(clip.times[0])
    late = (clip.times - start - torch.arange(len(clip)) / rate).abs().max()
    if late > 1 / rate:
        log.print("no sound, because the frames are not shown at the speed of the source", highlight=False)
        return None
    return Sound(Path(clip.path), start, len(clip) / rate, (clip.reading or {}).get("video_stream"))


def _is_encoded(path: Path) -> bool:
    """Whether this is a file of `fewtokens encode`."""
    from fewtokens.core import files
    from fewtokens.tokenizers.files import KIND

    return bool(files.load_header(path).get("kind") == KIND)


def _draw_tokenizer(
    path: Path, target: Path, video: Path | None, name: str | None, reading: ReadOptions, run: RunOptions
) -> None:
    """Draws the tokens of a video, or of an encoded video, whose video is read and encoded again."""
    import torch

    from fewtokens.show import frame_rate
    from fewtokens.show.tokenizer_maps import write_tokenizer_map
    from fewtokens.tokenizers.load import open_tokenizer

    if not _is_file(path):
        assert name is not None
        model = open_tokenizer(name, seed=run.seed, device=run.device)
        clip = read_video(path, reading)
        write_tokenizer_map(target, clip.frames, model, fps=frame_rate(clip), name=clip.name)
        return
    from fewtokens.tokenizers.files import read_header

    header = read_header(path)
    source = header["meta"].get("source")
    if video is not None:
        location = video
    elif isinstance(source, dict):
        location = Path(str(source["path"]))
    else:
        raise ValueError(f"{path} was saved from Python without the path of its video; give --video PATH")
    if not location.exists():
        raise ValueError(f"{path} was made from {location}, which does not exist; give --video if it was moved")
    model = StoredTokenizers(name, run.device)(path, header)
    frames = torch.cat([part.frames for part in VideoParts(location, header["meta"].get("reading") or {})])
    if [len(frames), *frames.shape[2:]] != list(header["size"]):
        sizes = ["x".join(map(str, size)) for size in ((len(frames), *frames.shape[2:]), header["size"])]
        raise ValueError(f"{location}: {sizes[0]} frames and pixels, but {path} was encoded from {sizes[1]}")
    write_tokenizer_map(target, frames, model, fps=header["fps"] or 25.0, name=location.name)


def _clips(shown: Sequence[_Shown]) -> list[Clip]:
    """Collects the results on the same frames in one clip.

    Results are labeled by spec if the specs of a clip differ, by file name otherwise.
    """
    from fewtokens.show import Clip, result_of, shorten

    groups: dict[str, list[_Shown]] = {}
    for entry in shown:
        key = json.dumps([os.path.realpath(entry.video.path or ""), dict(entry.video.reading or {})], sort_keys=True)
        groups.setdefault(key, []).append(entry)
    names = [group[0].video.name for group in groups.values()]
    if len(set(names)) < len(names):
        names = distinct_names([group[0].path for group in groups.values()])
    clips = []
    for name, group in zip(names, groups.values(), strict=True):
        labels = [shorten(str(entry.tokens.meta.get("spec", ""))) for entry in group]
        if len(set(labels)) < len(labels):
            labels = distinct_names([entry.path for entry in group])
        results = [
            result_of(entry.video, entry.tokens, entry.encoder, label)
            for label, entry in zip(labels, group, strict=True)
        ]
        clips.append(Clip(name, group[0].video.frames, group[0].video.times, results))
    return clips


def _from_file(path: Path, video: Path | None, options: ReadOptions, context: typer.Context | None) -> _Shown:
    """Returns the frames of the video of a token file, and the tokens.

    Without a reading in the file, the options select the frames; by default as many as the tokens have.
    """
    from fewtokens.core.plain import conform
    from fewtokens.core.tokens import Tokens

    tokens = Tokens.load(path)
    reading, times = options, None
    if "reading" in tokens.meta:
        if context is not None:  # otherwise the options apply to the videos next to this file
            refuse(context, names_of(ReadOptions), f"have no effect on {path}, which contains these settings")
        reading, selected = _saved_reading(tokens.meta["reading"], path)
        times = tokens.grid.times if selected else None
    elif options.frames is None and options.fps is None:
        reading = replace(options, frames=tokens.grid.T)
    if "source" not in tokens.meta:
        if video is None:
            raise ValueError(f"{path} was saved from Python without the path of its video; give --video PATH")
        return _Shown(path, _read_again(video, reading, times), tokens, None)
    source: Source = conform(tokens.meta["source"], Source, f"{path}: its source")
    location = video or Path(source["path"])
    if not location.exists():
        raise ValueError(f"{path} was made from {location}, which does not exist; give --video if it was moved")
    now = source_now(location)
    if now["bytes"] != source["bytes"] and source["bytes"]:
        raise ValueError(f"{location} has {now['bytes']} bytes, but {path} was made from a file of {source['bytes']}")
    if video is None and "mtime_ns" in source and now["mtime_ns"] != source["mtime_ns"]:
        raise ValueError(f"{location} has changed since {path} was made; give --video {location} if it shows the same")
    return _Shown(path, _read_again(location, reading, times), tokens, None)


def _read_again(path: Path, reading: ReadOptions, times: Any) -> Video:
    """Reads the frames at the times of a token file, a tensor, or if None those of its reading."""
    import numpy as np

    from fewtokens.video import read

    if times is None:
        return read_video(path, reading)
    seconds = times.flatten().numpy()
    return read(
        path,
        pick=lambda every: np.abs(every[:, None] - seconds).argmin(0),
        size=reading.size,
        video_stream=reading.video_stream,
        allow_truncated=reading.allow_truncated,
    )


def _saved_reading(saved: Any, path: Path) -> tuple[ReadOptions, bool]:
    """Returns the reading of a token file, and whether a method selected the frames."""
    from fewtokens.core.plain import conform

    reading = current_names(conform(saved, dict[str, Any], f"{path}: its reading"))
    selected = reading.get("select") is not None
    reading = {name: value for name, value in reading.items() if name not in ("select", "question", "scorer")}
    size = reading.get("size")
    if isinstance(size, list):  # height and width, from Python
        conform(size, tuple[int, int], f"{path}: its reading: size")
        reading["size"] = size[0]
    conform(reading, ReadOptions, f"{path}: its reading")
    if absent := [name for name in names_of(ReadOptions) if name not in reading]:
        raise ValueError(f"{path}: its reading has no {', '.join(absent)}")
    return ReadOptions(**reading | {"size": tuple(size) if isinstance(size, list) else size}), selected
