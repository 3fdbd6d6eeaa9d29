"""Which frames, and at which size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fewtokens.video.types import VideoError

Size = int | tuple[int, int]

# Frames above this many pixels are refused before memory is taken for them.
MOST_PIXELS = 100_000_000
# Reading more than this at once is refused; there are frames=, fps=, size= and chunks.
MOST_BYTES = 8 << 30


def check_request(frames: int | None, fps: float | None, size: Size | None, start: float, end: float | None) -> None:
    """Raises ValueError for numbers that fit no video."""
    if frames is not None and fps is not None:
        raise ValueError("say frames= or fps=, not both")
    if frames is not None and frames < 1:
        raise ValueError(f"frames must be at least 1, got {frames}")
    if fps is not None and not 0 < fps < float("inf"):
        raise ValueError(f"fps must be above 0, got {fps}")
    sides = () if size is None else (size,) if isinstance(size, int) else size
    if any(side < 1 for side in sides) or len(sides) > 2:
        raise ValueError(f"size must be the short side, or (height, width), in pixels, got {size}")
    if start < 0 or (end is not None and end <= start):
        raise ValueError(f"start and end must be 0 <= start < end, got {start} and {end}")


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
        raise VideoError(f"{name}: has no frame between {start} s and {end} s; its last one is at {times[-1]:.3f} s")
    if fps is not None:
        # The tick is compared with a small slack, for 1/fps is seldom exact.
        count = int((times[span[-1]] - times[span[0]]) * fps + 1e-6) + 1
        ticks = times[span[0]] + np.arange(count) / fps
        shown = np.searchsorted(times[span], ticks + 1e-6, side="right") - 1
        return np.unique(span[shown])
    if frames is None or frames >= len(span):
        return span
    return span[np.round(np.linspace(0, len(span) - 1, frames)).astype(np.int64)]


def target_size(width: int, height: int, size: Size | None) -> tuple[int, int]:
    """Height and width after resizing a frame that is shown at width x height."""
    if size is None:
        return height, width
    if not isinstance(size, int):
        return size
    if width < height:
        return max(1, round(size * height / width)), size
    return size, max(1, round(size * width / height))


def check_pixels(width: int, height: int, name: str) -> None:
    """Refuses sizes that only a broken or hostile file declares."""
    if width < 1 or height < 1:
        raise VideoError(f"{name}: declares frames of {width}x{height}, so there is no picture in it")
    if width * height > MOST_PIXELS:
        raise VideoError(
            f"{name}: declares frames of {width}x{height}, more than {MOST_PIXELS:,} pixels; it is not read"
        )


def check_bytes(frames: int, height: int, width: int, name: str) -> None:
    """Refuses to read more at once than fits a machine."""
    if frames * height * width * 3 > MOST_BYTES:
        raise VideoError(
            f"{name}: {frames} frames of {width}x{height} take {frames * height * width * 3 / (1 << 30):.0f} GiB; "
            "say frames=, fps= or size=, or read it in chunks with stream()"
        )
