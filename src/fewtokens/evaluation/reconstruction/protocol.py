"""The record that makes a distance comparable: on which clips, at which size, by which network it was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

FirstFrame = Literal["kept", "dropped"]


@dataclass(frozen=True)
class Protocol:
    """How a distance was measured; numbers of two protocols must not be compared.

    The FVD of one tokenizer differs by more than a factor of ten between protocols: split, length and size of clips,
    number of clips, extractor, and whether the first frame of causal tokenizers (the 17th) is kept.

    Attributes:
        split: data set and split, such as "UCF-101 train".
        clips, frames: number of clips, and measured frames of each.
        height, width: of the frames, in pixels.
        fps: frames per second; 0 for images, and for videos of several or unknown rates.
        crop: how frames were brought to the size, such as "center crop of the short side".
        first_frame: "kept", or "dropped" where a causal tokenizer has one frame more than the network reads.
        extractor: name of the network.
        extractor_hash: SHA-256 of its weights; "" for measures without a network.
    """

    split: str
    clips: int
    frames: int
    height: int
    width: int
    fps: float
    crop: str
    first_frame: FirstFrame = "kept"
    extractor: str = ""
    extractor_hash: str = ""

    def __post_init__(self) -> None:
        if self.first_frame not in ("kept", "dropped"):
            raise ValueError(f"first_frame must be 'kept' or 'dropped', got {self.first_frame!r}")

    def select(self, videos: Tensor) -> Tensor:
        """Returns the frames [B,T,3,H,W] that are measured: all, or all but the first.

        Raises:
            ValueError: the videos have another size or number of frames than the record states.
        """
        dropped = int(self.first_frame == "dropped")
        expected = [self.frames + dropped, 3, self.height, self.width]
        if videos.ndim != 5 or list(videos.shape[1:]) != expected:
            note = ", the first of which is dropped" if dropped else ""
            raise ValueError(f"the protocol states clips of shape {expected}{note}, got {list(videos.shape[1:])}")
        return videos[:, dropped:]

    def check_count(self, clips: int) -> None:
        """Raises ValueError if the number of clips is not that of the record."""
        if clips != self.clips:
            raise ValueError(f"the protocol states {self.clips} clips, got {clips}")
