"""Validates requests, selects frames, computes target sizes and checks size limits."""

from __future__ import annotations

from numbers import Integral, Real

import numpy as np
from numpy.typing import NDArray

from fewtokens.video.types import VideoError

Size = int | tuple[int, int]

# Maximum number of pixels per image, before and after resizing; checked before memory is allocated. 8K video has
# 33 million; Pillow warns above this number.
MAX_PIXELS = 89_000_000
# Maximum number of bytes to read in one call; use frames=, fps=, size= or chunks for larger videos.
MAX_BYTES = 8 << 30
# Timestamps are compared with a tolerance of a microsecond, so a higher rate is meaningless.
MAX_FPS = 1_000_000


def check_request(frames: int | None, fps: float | None, size: Size | None, start: float, end: float | None) -> None:
    """Validates the arguments of `read`.

    Raises:
        ValueError: an argument is invalid.
    """
    if frames is not None and fps is not None:
        raise ValueError("pass frames= or fps=, not both")
    if frames is not None and (not isinstance(frames, Integral) or frames < 1):
        raise ValueError(f"frames must be a whole number of at least 1, got {frames!r}")
    if fps is not None and (not isinstance(fps, Real) or not 0 < fps <= MAX_FPS):
        raise ValueError(f"fps must be above 0 and at most {MAX_FPS:,}, got {fps!r}; omit it to read all frames")
    sides = () if size is None else tuple(size) if isinstance(size, tuple | list) else (size,)
    if len(sides) > 2 or (isinstance(size, tuple | list) and len(sides) != 2) or not all(map(_is_side, sides)):
        raise ValueError(f"size must be the short side, or (height, width), in pixels, got {size!r}")
    if not isinstance(start, Real) or not 0 <= start < np.inf:
        raise ValueError(f"start must be at least 0 seconds, got {start!r}")
    if end is not None and (not isinstance(end, Real) or not end > start):
        raise ValueError(f"start must be before end, got {start!r} and {end!r}")


def _is_side(side: object) -> bool:
    return isinstance(side, Integral) and int(side) >= 1


def select_frames(
    times: NDArray[np.float64], frames: int | None, fps: float | None, start: float, end: float | None, name: str
) -> NDArray[np.int64]:
    """Returns the indices of the requested frames, ascending.

    Args:
        times: seconds of all frames, ascending.
        frames: number of frames, evenly spaced in [start, end); all frames if there are fewer.
        fps: selects the last frame shown at each of t, t + 1/fps, ..., without repeats, from the second t of the first
            frame that is not before `start` to that of the last one.
        start: seconds.
        end: seconds; None for the end of the video.
        name: name of the video, for the error message.

    Raises:
        VideoError: there is no frame in [start, end).
    """
    span = np.flatnonzero((times >= start - 1e-9) & (times < (np.inf if end is None else end)))
    if not len(span):
        limit = "its end" if end is None else f"{end} s"
        raise VideoError(f"{name}: has no frame between {start} s and {limit}; its last frame is at {times[-1]:.3f} s")
    if fps is not None:
        # `tick` is the first sampling time at or after each frame; a frame is selected if the next one has a later
        # tick. Ticks are not enumerated, since a gap in the timestamps may contain any number of them. The tolerance
        # is needed because 1/fps is rarely exact.
        elapsed = times[span] - times[span[0]]
        tick = np.maximum(np.ceil((elapsed - 1e-6) * fps), 0)
        ticks = np.floor(elapsed[-1] * fps + 1e-6) + 1
        return span[tick < np.append(tick[1:], ticks)]
    if frames is None or frames >= len(span):
        return span
    return span[np.round(np.linspace(0, len(span) - 1, frames)).astype(np.int64)]


def target_size(width: int, height: int, size: Size | None, name: str) -> tuple[int, int]:
    """Returns the height and width after resizing an image of width x height pixels.

    Raises:
        VideoError: the result has more than `MAX_PIXELS` pixels.
    """
    if size is None:
        shape = height, width
    elif isinstance(size, tuple | list):
        shape = int(size[0]), int(size[1])
    else:
        # The long side of a very thin image may become arbitrarily large.
        shape = (
            (max(1, round(size * height / width)), int(size))
            if width < height
            else (int(size), max(1, round(size * width / height)))
        )
    if shape[0] * shape[1] > MAX_PIXELS:
        raise VideoError(
            f"{name}: an image of {width}x{height} becomes {shape[1]}x{shape[0]} at this size, more than "
            f"{MAX_PIXELS:,} pixels; pass a smaller size="
        )
    return shape


def check_pixels(width: int, height: int, name: str) -> None:
    """Rejects image sizes that only a damaged or malicious file declares; called before memory is allocated.

    Raises:
        VideoError: the size is empty or has more than `MAX_PIXELS` pixels.
    """
    if width < 1 or height < 1:
        raise VideoError(f"{name}: declares images of {width}x{height} pixels, which is empty")
    if width * height > MAX_PIXELS:
        raise VideoError(f"{name}: declares images of {width}x{height}, more than {MAX_PIXELS:,} pixels")


def check_bytes(frames: int, height: int, width: int, name: str) -> None:
    """Rejects requests of more than `MAX_BYTES` bytes.

    Raises:
        VideoError: the frames are too large.
    """
    if frames * height * width * 3 > MAX_BYTES:
        raise VideoError(
            f"{name}: {frames} frames of {width}x{height} take {frames * height * width * 3 / (1 << 30):.0f} GiB; "
            "pass frames=, fps= or size=, or read it in smaller chunks with stream()"
        )
