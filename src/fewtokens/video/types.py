"""What reading gives, and what it says when it cannot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor


class VideoError(ValueError):
    """A video that cannot be read as asked: one line that says what is wrong and what to do."""


@dataclass(frozen=True, eq=False)
class Video:
    """Frames with the times at which they are shown.

    Attributes:
        frames: uint8 [T,3,H,W], RGB.
        times: float64 [T], seconds since the first frame of the video.
        duration: of the whole video in seconds, or None where the file does not say.
        fps: average frames each second of the source, or None.
        path: where it was read from, or None.
        source_size: bytes of the file, or None.
    """

    frames: Tensor
    times: Tensor
    duration: float | None = None
    fps: float | None = None
    path: str | None = None
    source_size: int | None = None

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
