"""One call from tokens, or from specs, to an image, a video or a page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fewtokens.core import registry
from fewtokens.core.checks import DOCUMENTS, check_comparison, check_overlay
from fewtokens.core.encoder import Encoder
from fewtokens.core.inputs import DEFAULT_FRAMES, DEFAULT_SIZE, to_frames
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.tokens import TIME_WEIGHT, Tokens
from fewtokens.encoders import load_encoder
from fewtokens.evaluation.fidelity import psnr
from fewtokens.show.boxes import write_boxes
from fewtokens.show.comparison import draw_comparison
from fewtokens.show.labels import shorten
from fewtokens.show.page import write_page
from fewtokens.show.recording import write_recording
from fewtokens.show.side_by_side import write_columns
from fewtokens.show.types import Clip, Result
from fewtokens.show.write import write_overlay
from fewtokens.video import Video, read
from fewtokens.video.sound import Sound


def draw(tokens: Tokens, path: str | Path, video: Any = None, *, style: str = "fill") -> Path:
    """Draws tokens over the frames of their video.

        tokens = fewtokens.tokenize("clip.mp4", "tome(keep=0.1)")
        fewtokens.show.draw(tokens, "clip.png")

    Args:
        tokens: of one video, B=1.
        path: a .png, .gif or .mp4; an .html page or an .rrd recording, which also show the frames rebuilt from pixel
            patches; or a folder that ends in .fiftyone, see `write_boxes`.
        video: its frames: a path, a `Video`, or frames [T,3,H,W]. Default: the file that the tokens were made from.
        style: "fill", "outline", "mean" or "maps", see `write_overlay`; only of images and videos.

    Returns:
        The path.

    Raises:
        ValueError: the suffix or the style is unknown, the tokens are of several videos, or `video` is needed.
    """
    check_overlay(path, style)
    clip = _video_of(tokens, video)
    if Path(path).suffix in DOCUMENTS:
        return write_comparison(Clip(clip.name, clip.frames, clip.times, [result_of(clip, tokens)]), path)
    return write_overlay(path, clip.frames, tokens, times=clip.times, fps=frame_rate(clip), style=style, name=clip.name)


@torch.inference_mode()
def compare(
    video: Any,
    specs: Sequence[str],
    path: str | Path,
    *,
    encoder: str | Encoder = "patches",
    keep: float | int | str | None = None,
    frames: int = DEFAULT_FRAMES,
    size: int = DEFAULT_SIZE,
    seed: int = 0,
) -> Path:
    """Reduces one video by several methods and draws the results side by side.

        fewtokens.show.compare("clip.mp4", ["tome(keep=0.1)", "evs(keep=0.1)"], "compare.png")

    Args:
        video: a path, a `Video`, or frames [T,3,H,W].
        specs: specs of the methods, at most 5 for an image or a video.
        path: a .png, an .html page, an .rrd recording, an .mp4 or .gif, or a folder that ends in .fiftyone.
        encoder: an encoder, or a name for `load_encoder`. Frames are rebuilt, with their PSNR, if it is "patches".
        keep: budget of methods whose spec sets none.
        frames, size: number of frames to read from a path, and their short side in pixels.
        seed: random seed of stochastic methods.

    Returns:
        The path.

    Raises:
        ValueError: the suffix is unknown, a spec is invalid, or the video cannot be read.
    """
    check_comparison(path, len(specs))
    clip = (
        read(os.fspath(video), frames=frames, size=size) if isinstance(video, str | os.PathLike) else _as_video(video)
    )
    network = load_encoder(encoder) if isinstance(encoder, str) else encoder
    results = []
    for spec in specs:
        torch.manual_seed(seed)
        budget = {} if keep is None else {"keep": keep}
        methods = registry.build(spec, seed=seed, dim=network.dim, **budget) if spec.strip() else ()
        tokens = Pipeline(methods, network).eval()(clip).to("cpu")
        results.append(result_of(clip, tokens, network))
    return write_comparison(Clip(clip.name, clip.frames, clip.times, results), path, fps=frame_rate(clip))


def write_comparison(clip: Clip, path: str | Path, *, fps: float = 8.0, sound: Sound | None = None) -> Path:
    """Draws the results of one clip in the form that the suffix of the path names, see `compare`.

    `fps` and `sound` are those of a video.
    """
    check_comparison(path, len(clip.results))
    suffix = Path(path).suffix
    if suffix == ".html":
        return write_page([clip], path)
    if suffix in DOCUMENTS:
        return write_recording(clip, path) if suffix == ".rrd" else write_boxes(clip, path)
    if suffix != ".png":
        return write_columns(path, clip, fps=fps, sound=sound)
    caption = f"{clip.describe()}."
    if any("psnr_db" in result.numbers for result in clip.results):
        caption += " dB: PSNR of all rebuilt frames."
    return draw_comparison(clip, path, caption=caption)


def result_of(video: Video, tokens: Tokens, encoder: Encoder | None = None, name: str = "") -> Result:
    """Returns what figures and pages show of tokens: their counts and, if the encoder decodes, the rebuilt frames.

    Args:
        video: the frames of the tokens.
        tokens: B=1.
        encoder: the encoder of the tokens. Default: the one that `tokens.meta` specifies if it decodes.
        name: label. Default: the spec.

    Raises:
        ValueError: the tokens are of several videos.
    """
    if tokens.B != 1:
        raise ValueError(f"a figure shows one video, got tokens of {tokens.B}")
    count = int(tokens.count[0])
    numbers: dict[str, Any] = {"tokens": count, "retention": count / tokens.grid.cells}
    spec = shorten(str(tokens.meta.get("spec", "")))
    frames = None
    encoder = encoder or _decoder_of(tokens)
    if encoder is not None and encoder.decode is not None and encoder.dim == tokens.C:
        full, _ = encoder(video.frames[None], video.times)
        if full.grid.shape == tokens.grid.shape:
            reference = encoder.decode(full.unmerge())
            cells = tokens.to(encoder.device).unmerge(time_weight=TIME_WEIGHT)
            rebuilt = encoder.decode(cells).clamp(0, 1)
            numbers["psnr_db"] = psnr(rebuilt, reference)
            frames = (encoder.decode(cells, size=video.size)[0].clamp(0, 1) * 255).round().byte().cpu()
            frames = frames[: len(video)]  # the last tubelet may be padded
    return Result(name or spec, spec, tokens, frames, numbers)


def frame_rate(video: Video) -> float:
    """Returns the frame rate at which the frames last as long as in the video."""
    span = float(video.times[-1] - video.times[0])
    return max(1.0, (len(video) - 1) / span) if span > 0 else 4.0


def _video_of(tokens: Tokens, video: Any) -> Video:
    reading = dict(tokens.meta.get("reading") or {"frames": tokens.grid.T})
    if video is None:
        if "source" not in tokens.meta:
            raise ValueError("these tokens were made without a path; pass their video")
        video = tokens.meta["source"]["path"]
    if isinstance(video, str | os.PathLike):
        return read(os.fspath(video), **reading)
    return _as_video(video)


def _as_video(video: Any) -> Video:
    if isinstance(video, Video):
        return video
    frames, times = to_frames(video)
    if len(frames) != 1:
        raise ValueError(f"a figure shows one video, got {len(frames)}")
    if times is None:
        return read(frames[0])
    return Video(read(frames[0]).frames, times.reshape(-1))


def _decoder_of(tokens: Tokens) -> Encoder | None:
    """Returns the encoder of the tokens if its features are pixels."""
    encoder = tokens.meta.get("encoder")
    if not isinstance(encoder, dict) or encoder.get("id") != "patches":
        return None
    return load_encoder("patches", **(encoder.get("options") or {}))
