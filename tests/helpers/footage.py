"""A video file in which the scene of every frame is known, and counts of what is decoded."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fewtokens.video import write
from fewtokens.video.scale import Scaler

FPS = 8


def scenes(frames: int, needle: int, height: int = 48, width: int = 64) -> tuple[Tensor, Tensor]:
    """Frames uint8 [T,3,H,W] of scenes of 20 frames, of two kinds in turn, and one frame of a third kind, the needle.

    Returns the frames and the kind of each, int64 [T].
    """
    generator = torch.Generator().manual_seed(0)
    kinds = (torch.arange(frames) // 20) % 2
    kinds[needle] = 2
    blocks = torch.randint(0, 256, (3, 3, height // 16, width // 16), generator=generator)
    pictures = blocks.repeat_interleave(16, 2).repeat_interleave(16, 3).byte()
    return pictures[kinds], kinds


def write_scenes(path: Path, frames: int, needle: int) -> Tensor:
    """Writes `scenes` to a file of 8 frames per second; returns the kinds."""
    pictures, kinds = scenes(frames, needle)
    write(path, pictures, FPS)
    return kinds


class Decoded:
    """Counts the frames that are converted to pixels, by their short side."""

    def __init__(self, monkeypatch) -> None:
        self.counts: dict[int, int] = {}
        original = Scaler.frame

        def frame(scaler: Scaler, *args, **options):
            image = original(scaler, *args, **options)
            side = min(image.shape[1:])
            self.counts[side] = self.counts.get(side, 0) + 1
            return image

        monkeypatch.setattr(Scaler, "frame", frame)
