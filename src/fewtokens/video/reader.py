"""`read` and `stream`: from files, folders and arrays to frames with times."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fewtokens.video.decode import Broken, Converter, Progress, countable, cut_index, decode_all, decode_at, sound_index
from fewtokens.video.images import is_image, read_image, read_images
from fewtokens.video.select import Size, check_bytes, check_request, choose, target_size
from fewtokens.video.types import Video, VideoError

# From the seconds of all frames to the numbers of those wanted.
Picker = Callable[[NDArray[np.float64]], NDArray[np.int64]]

# Images in a folder and arrays have no times of their own.
_FPS = 25.0


def read(
    source: str | Path | NDArray[Any] | Tensor,
    *,
    frames: int | None = None,
    fps: float | None = None,
    size: Size | None = None,
    start: float = 0.0,
    end: float | None = None,
    pick: Picker | None = None,
    stream: int | None = None,
    allow_truncated: bool = False,
    progress: Progress | None = None,
) -> Video:
    """Reads frames of a video.

    Args:
        source: a video file, an image (one frame), a folder of images (in natural order, 25 a second), or an
            array: [T,H,W,3] or [T,3,H,W] (or one frame without T), uint8 or float in 0..1, 25 a second.
        frames: that many, spread evenly from the first to the last (all, if there are fewer); or
        fps: frames each second, each time the last one shown by then. Neither: every frame.
        size: the short side in pixels (the aspect stays), or (height, width). Non-square pixels are made
            square and rotation is applied before.
        start, end: seconds from the first frame; frames in [start, end).
        pick: instead of all these: given the seconds of all frames, float64 [n], the numbers of those wanted, in any
            order, repeats included. For a video file.
        stream: which of several video streams, counted from 0; FFmpeg's best where not said.
        allow_truncated: use what can be decoded of a file that is cut or damaged.
        progress: called with (frames done, frames in all).

    Returns:
        Frames with exact times from the file's time stamps.

    Raises:
        VideoError: missing, empty, not a video, only sound, cut, too large: one line that says what to do.
        ValueError: numbers that fit no video.
    """
    check_request(frames, fps, size, start, end)
    if pick is not None and (frames is not None or fps is not None or start or end is not None):
        raise ValueError("pick= stands alone; leave out frames, fps, start and end")
    if not isinstance(source, str | os.PathLike):
        return _from_array(source, frames, fps, size, start, end)
    path = Path(source)
    if not path.exists():
        raise VideoError(f"{path}: no such file")
    if path.is_dir():
        return read_images(path, frames, fps, size, start, end, _FPS, progress)
    if is_image(path):
        return read_image(path, size)
    choice = pick or (lambda times: choose(times, frames, fps, start, end, str(path)))
    return _read_file(path, choice, size, stream, allow_truncated, progress)


def _read_file(
    path: Path,
    choice: Picker,
    size: Size | None,
    number: int | None,
    allow_truncated: bool,
    progress: Progress | None,
) -> Video:
    index, facts = sound_index(path, number, allow_truncated)
    convert = Converter(size, facts["aspect"], str(path))
    shape = target_size(round(facts["width"] * facts["aspect"]), facts["height"], size)
    pictures = None
    if index.pts is not None:
        times = (index.pts - index.pts[0]) * facts["time_base"]
        asked = choice(times)
        chosen, place = np.unique(asked, return_inverse=True)
        check_bytes(len(asked), *shape, str(path))
        pictures = decode_at(path, number, index, index.pts[chosen], convert, progress)
    if pictures is None:
        # Packets without sound time stamps, or data that does not keep to them: count by decoding, then read.
        stamps, unbroken = countable(path, number, broken=index.cut)
        if not unbroken and not index.cut:
            index = cut_index(path, number, index, allow_truncated)
            stamps, _ = countable(path, number, broken=True)
        if not stamps:
            raise VideoError(f"{path}: none of its frames can be decoded")
        times = _times(stamps, facts)
        asked = choice(times)
        chosen, place = np.unique(asked, return_inverse=True)
        check_bytes(len(asked), *shape, str(path))
        pictures = _count_off(path, number, index.cut, chosen, convert, progress)
    return Video(
        frames=torch.stack([pictures[n] for n in place]),
        times=torch.from_numpy(times[asked].astype(np.float64)),
        duration=facts["duration"],
        fps=facts["fps"],
        path=str(path),
        source_size=path.stat().st_size,
    )


def _times(stamps: list[int | None], facts: dict[str, Any]) -> NDArray[np.float64]:
    """Seconds of all frames: their time stamps if they rise, otherwise their number over the frame rate."""
    known = np.array([-1 if pts is None else pts for pts in stamps], dtype=np.float64)
    if all(pts is not None for pts in stamps) and bool((np.diff(known) > 0).all()):
        return (known - known[0]) * facts["time_base"]
    return np.arange(len(stamps)) / (facts["fps"] or _FPS)


def _count_off(
    path: Path,
    number: int | None,
    broken: bool,
    chosen: NDArray[np.int64],
    convert: Converter,
    progress: Progress | None,
) -> list[Tensor]:
    """The frames with these numbers, by decoding all up to the last one."""
    wanted, pictures = set(chosen.tolist()), []
    for n, (frame, _) in enumerate(decode_all(path, number, broken=broken)):
        if n in wanted:
            pictures.append(convert(frame))
            if progress is not None:
                progress(len(pictures), len(wanted))
        if len(pictures) == len(wanted):
            break
    return pictures


def stream(
    path: str | Path,
    *,
    chunk: int = 32,
    fps: float | None = None,
    size: Size | None = None,
    start: float = 0.0,
    end: float | None = None,
    video_stream: int | None = None,
    allow_truncated: bool = False,
) -> Iterator[Video]:
    """Reads a video file in chunks, in memory that does not grow with its length.

    Args:
        path: a video file.
        chunk: frames in each piece; the last one may have fewer.
        fps, size, start, end, allow_truncated: as in `read`.
        video_stream: which of several video streams, counted from 0.

    Yields:
        Videos whose times go on from one to the next; together they are what `read` gives.

    Raises:
        VideoError: as `read`; a cut file is refused before the first chunk.
    """
    check_request(None, fps, size, start, end)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 frame, got {chunk}")
    path = Path(path)
    if not path.is_file():
        raise VideoError(f"{path}: no such file")
    index, facts = sound_index(path, video_stream, allow_truncated)
    convert = Converter(size, facts["aspect"], str(path))
    first = None if index.pts is None else int(index.pts[0])
    cut = index.cut
    del index  # the one thing that grows with the length
    frames: list[Tensor] = []
    times: list[float] = []
    any_frame = False
    for frame, time in _shown(path, video_stream, fps, start, end, first, facts, cut):
        frames.append(convert(frame))
        times.append(time)
        any_frame = True
        if len(frames) == chunk:
            yield _chunk(frames, times, path, facts)
            frames, times = [], []
    if frames:
        yield _chunk(frames, times, path, facts)
    if not any_frame:
        raise VideoError(f"{path}: has no frame between {start} s and {end} s")


def _shown(
    path: Path,
    number: int | None,
    fps: float | None,
    start: float,
    end: float | None,
    first: int | None,
    facts: dict[str, Any],
    cut: bool,
) -> Iterator[tuple[Any, float]]:
    """Frames in [start, end) with their seconds: all, or the last one shown by each tick of 1/fps."""
    held: tuple[Any, float] | None = None
    origin, ticks = 0.0, 0
    # Where time stamps are not to be trusted frames are counted, and counting begins at the beginning.
    seek = 0.0 if first is None or cut else start
    try:
        for n, (frame, pts) in enumerate(decode_all(path, number, seek, broken=cut)):
            time = n / (facts["fps"] or _FPS) if pts is None or first is None else (pts - first) * facts["time_base"]
            if time < start - 1e-9:
                continue
            if end is not None and time >= end:
                break
            if fps is None:
                yield frame, time
                continue
            if held is None:
                origin = time
            # The frame before is shown until now: it belongs to every tick before this one, and is given once.
            elif origin + ticks / fps + 1e-6 < time:
                yield held
                while origin + ticks / fps + 1e-6 < time:
                    ticks += 1
            held = frame, time
    except Broken:
        # What can be decoded of a file known to be cut was allowed, or it would not have come here.
        if not cut:
            raise VideoError(f"{path}: is damaged; what comes after the last chunk cannot be decoded") from None
    if held is not None and fps is not None and ticks < int((held[1] - origin) * fps + 1e-6) + 1:
        yield held


def _chunk(frames: list[Tensor], times: list[float], path: Path, facts: dict[str, Any]) -> Video:
    return Video(
        torch.stack(frames),
        torch.tensor(times, dtype=torch.float64),
        facts["duration"],
        facts["fps"],
        str(path),
        path.stat().st_size,
    )


def _from_array(
    array: NDArray[Any] | Tensor,
    frames: int | None,
    fps: float | None,
    size: Size | None,
    start: float,
    end: float | None,
) -> Video:
    """Frames that are there already."""
    pixels = torch.as_tensor(array)
    pixels = pixels[None] if pixels.ndim == 3 else pixels
    if pixels.ndim != 4 or 0 in pixels.shape or 3 not in (pixels.shape[1], pixels.shape[3]):
        raise VideoError(f"an array of frames must be [T,H,W,3] or [T,3,H,W], got {list(torch.as_tensor(array).shape)}")
    if pixels.shape[3] == 3 and pixels.shape[1] != 3:
        pixels = pixels.permute(0, 3, 1, 2)
    if pixels.is_floating_point():
        if not bool(((pixels >= -1e-3) & (pixels <= 1.001)).all()):
            raise VideoError("an array of floats must lie in 0..1; divide by 255, or give uint8")
        pixels = (pixels.clamp(0, 1) * 255).round().byte()
    if pixels.dtype != torch.uint8:
        raise VideoError(f"an array of frames must be uint8, or float in 0..1, got {pixels.dtype}")
    times = np.arange(len(pixels)) / _FPS
    chosen = choose(times, frames, fps, start, end, "array")
    pixels = pixels[torch.from_numpy(chosen)]
    shape = target_size(pixels.shape[3], pixels.shape[2], size)
    if shape != tuple(pixels.shape[2:]):
        small = F.interpolate(pixels.float(), shape, mode="bilinear", antialias=True, align_corners=False)
        pixels = small.round().clamp(0, 255).byte()
    return Video(pixels.contiguous(), torch.from_numpy(times[chosen]), len(times) / _FPS, _FPS)
