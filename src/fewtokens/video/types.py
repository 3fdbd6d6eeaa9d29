"""What reading gives, and what it says when it cannot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fewtokens.core.shapes import by_shape


class VideoError(ValueError):
    """A video that cannot be read as asked: one line that says what is wrong and what to do."""


@dataclass(frozen=True, eq=False)
class Video:
    """Frames with the times at which they are shown.

    `duration` and `fps` belong to the source, of which the frames at hand may be a part, or one in many: for the
    frames themselves ask `interval`.

    Attributes:
        frames: uint8 [T,3,H,W], RGB.
        times: float64 [T], seconds since the first frame of the source.
        duration: seconds of the whole source, from its first frame until its last one is no longer shown, or None.
        fps: average frames each second of the whole source, or None.
        path: where it was read from, or None.
        source_size: bytes of the file, or None.
    """

    frames: Tensor
    times: Tensor
    duration: float | None = None
    fps: float | None = None
    path: str | None = None
    source_size: int | None = None

    __repr__ = by_shape

    def __len__(self) -> int:
        return self.frames.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.frames.shape[2], self.frames.shape[3]

    @property
    def name(self) -> str:
        """The file's name."""
        return Path(self.path).name if self.path else "array"

    @property
    def interval(self) -> float | None:
        """Seconds from one frame at hand to the next, on average; that of the source for a single one, or None."""
        span = float(self.times[-1] - self.times[0])
        if span > 0:
            return span / (len(self) - 1)
        return 1 / self.fps if self.fps else None
