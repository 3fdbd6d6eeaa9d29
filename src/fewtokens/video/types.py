"""`Video`, the result of reading, and `VideoError`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fewtokens.core.shapes import shape_repr


class VideoError(ValueError):
    """Raised if a video cannot be read as requested; the message is one line."""


@dataclass(frozen=True, eq=False)
class Video:
    """Frames and the times at which they are shown.

    `duration` and `fps` describe the source, of which `frames` may be a part or a sample; `interval` describes the
    frames themselves.

    Attributes:
        frames: uint8 [T,3,H,W], RGB.
        times: float64 [T], seconds since the first frame of the source.
        duration: seconds from the first frame to the end of the last frame of the source, or None if unknown.
        fps: average frames per second of the source, or None if unknown.
        path: path of the source, or None for an array.
        source_size: size of the file in bytes, or None if the source is not a file.
        selection: the `fewtokens.core.selection.Selection` of `read(select=)`, with indices among all frames of the
            source; None otherwise.
        reading: arguments of `read` that select these frames of `path`, as plain values; None for an array, for
            frames that `pick` chose, and for a chunk of a stream.
        size: height and width in pixels.
        name: file name of the source, or "array".
        interval: average seconds between consecutive frames, or None if unknown.
    """

    frames: Tensor
    times: Tensor
    duration: float | None = None
    fps: float | None = None
    path: str | None = None
    source_size: int | None = None
    reading: Mapping[str, Any] | None = None
    selection: Any = None

    __repr__ = shape_repr

    def __len__(self) -> int:
        """The number of frames."""
        return self.frames.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.frames.shape[2], self.frames.shape[3]

    @property
    def name(self) -> str:
        """The file name of the source, or "array"."""
        return Path(self.path).name if self.path else "array"

    @property
    def interval(self) -> float | None:
        """Average seconds between consecutive frames; for a single frame that of the source, or None if unknown."""
        span = float(self.times[-1] - self.times[0])
        if span > 0:
            return span / (len(self) - 1)
        return 1 / self.fps if self.fps else None
