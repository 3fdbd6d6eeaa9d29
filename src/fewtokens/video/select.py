"""Which frames, at which size, and how much is too much."""

from __future__ import annotations

from numbers import Integral, Real

import numpy as np
from numpy.typing import NDArray

from fewtokens.video.types import VideoError

Size = int | tuple[int, int]

# A picture of more pixels is refused before memory is taken for it, as it is stored and as it becomes: 8K video has
# 33 million. Pillow warns of larger ones.
MOST_PIXELS = 89_000_000
# Reading more than this at once is refused; there are frames=, fps=, size= and chunks.
MOST_BYTES = 8 << 30
# Time stamps are compared with a slack of a microsecond, so a higher rate means nothing.
MOST_FPS = 1_000_000


def check_request(frames: int | None, fps: float | None, size: Size | None, start: float, end: float | None) -> None:
    """Raises ValueError for values that fit no video."""
    if frames is not None and fps is not None:
        raise ValueError("say frames= or fps=, not both")
    if frames is not None and (not isinstance(frames, Integral) or frames < 1):
        raise ValueError(f"frames must be a whole number of at least 1, got {frames!r}")
    if fps is not None and (not isinstance(fps, Real) or not 0 < fps <= MOST_FPS):
        raise ValueError(f"fps must be above 0 and at most {MOST_FPS:,}, got {fps!r}; leave it out to get every frame")
    sides = () if size is None else tuple(size) if isinstance(size, tuple | list) else (size,)
    if len(sides) > 2 or (isinstance(size, tuple | list) and len(sides) != 2) or not all(map(_is_side, sides)):
        raise ValueError(f"size must be the short side, or (height, width), in pixels, got {size!r}")
    if not isinstance(start, Real) or not 0 <= start < np.inf:
        raise ValueError(f"start must be seconds, 0 or more, got {start!r}")
    if end is not None and (not isinstance(end, Real) or not end > start):
        raise ValueError(f"start and end must be 0 <= start < end, got {start!r} and {end!r}")


def _is_side(side: object) -> bool:
    return isinstance(side, Integral) and int(side) >= 1


def choose(
    times: NDArray[np.float64], frames: int | None, fps: float | None, start: float, end: float | None, name: str
) -> NDArray[np.int64]:
    """Numbers of the frames asked for, rising.

    Args:
        times: seconds of all frames, rising.
        frames: that many, evenly from the first to the last one in [start, end), or all there are if fewer.
        fps: those seen at start, start + 1/fps, ...: each time the last frame shown by then, each once.
        start, end: seconds; None = to the end.
        name: of the video, for errors.

    Raises:
        VideoError: nothing is shown in that span.
    """
    span = np.flatnonzero((times >= start - 1e-9) & (times < (np.inf if end is None else end)))
    if not len(span):
        until = "its end" if end is None else f"{end} s"
        raise VideoError(f"{name}: has no frame between {start} s and {until}; its last one is at {times[-1]:.3f} s")
    if fps is not None:
        # Of each frame the first tick at or after it; it is seen if the next frame comes after that tick. Ticks are
        # not listed one by one, for a gap in the time stamps may hold any number of them. The slack is there because
        # 1/fps is seldom exact.
        passed = times[span] - times[span[0]]
        tick = np.maximum(np.ceil((passed - 1e-6) * fps), 0)
        ticks = np.floor(passed[-1] * fps + 1e-6) + 1
        return span[tick < np.append(tick[1:], ticks)]
    if frames is None or frames >= len(span):
        return span
    return span[np.round(np.linspace(0, len(span) - 1, frames)).astype(np.int64)]


def target_size(width: int, height: int, size: Size | None, name: str) -> tuple[int, int]:
    """Height and width after resizing a picture that is shown at width x height.

    Raises:
        VideoError: larger than `MOST_PIXELS`.
    """
    if size is None:
        shape = height, width
    elif isinstance(size, tuple | list):
        shape = int(size[0]), int(size[1])
    else:
        # Of a picture of one row the long side may grow without bounds.
        shape = (
            (max(1, round(size * height / width)), int(size))
            if width < height
            else (int(size), max(1, round(size * width / height)))
        )
    if shape[0] * shape[1] > MOST_PIXELS:
        raise VideoError(
            f"{name}: a picture of {width}x{height} becomes {shape[1]}x{shape[0]} at this size, more than "
            f"{MOST_PIXELS:,} pixels; give another size="
        )
    return shape


def check_pixels(width: int, height: int, name: str) -> None:
    """Refuses sizes that only a broken or hostile file declares: call it before memory is taken for the pixels."""
    if width < 1 or height < 1:
        raise VideoError(f"{name}: declares pictures of {width}x{height}, so there is none in it")
    if width * height > MOST_PIXELS:
        raise VideoError(
            f"{name}: declares pictures of {width}x{height}, more than {MOST_PIXELS:,} pixels; it is not read"
        )


def check_bytes(frames: int, height: int, width: int, name: str) -> None:
    """Refuses to read more at once than fits a machine."""
    if frames * height * width * 3 > MOST_BYTES:
        raise VideoError(
            f"{name}: {frames} frames of {width}x{height} take {frames * height * width * 3 / (1 << 30):.0f} GiB; "
            "say frames=, fps= or size=, or read it in smaller chunks with stream()"
        )
