"""A made set of clips that needs time: which digit, and which way does it move."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fewtokens.data.clips import Sample, View, mix

_WAYS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}


class MovingDigits(Dataset[Sample]):
    """One digit that moves left, right, up or down over noise: 40 classes, drawn anew in every epoch.

    The plane is a torus and the digit begins anywhere on it, so a single frame shows the digit and says nothing of
    the direction: a network that ignores time is right in at most one of four clips.

    Indexed by (epoch, number) or by number.

    Args:
        items: clips in an epoch; class = number % 40, that is 4 * digit + way (left, right, up, down).
        frames: of a clip.
        size: side in pixels.
        seed: another seed, other clips; take another one for the test.
        noise: standard deviation of the grey noise, new in every frame.
    """

    classes = tuple(f"{digit} {way}" for digit in range(10) for way in _WAYS)

    def __init__(self, items: int, *, frames: int = 8, size: int = 24, seed: int = 0, noise: float = 0.05) -> None:
        if min(items, frames, size) < 1:
            raise ValueError(f"items, frames and size must be at least 1, got {items}, {frames} and {size}")
        self.items, self.seed, self.noise, self.size = items, seed, noise, size
        self.view = View(frames=frames)
        self._glyphs = _glyphs(max(6, round(size * 0.72)))

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        generator = torch.Generator().manual_seed(mix(self.seed, epoch, index))
        label = index % len(self.classes)
        down, right = list(_WAYS.values())[label % 4]
        glyph = self._glyphs[label // 4]
        plane = torch.zeros(self.size, self.size)
        plane[: len(glyph), : len(glyph)] = glyph[: self.size, : self.size]
        row, column = (int(torch.randint(self.size, (), generator=generator)) for _ in range(2))
        speed = int(torch.randint(max(1, self.size // 16), max(2, self.size // 8) + 1, (), generator=generator))
        frames = torch.stack(
            [plane.roll((row + down * speed * t, column + right * speed * t), (0, 1)) for t in range(self.view.frames)]
        )
        frames = frames * 0.8 + self.noise * torch.randn(frames.shape, generator=generator)
        clip = frames.clamp(0, 1)[:, None].expand(-1, 3, -1, -1)
        return Sample(clip[None].contiguous(), torch.tensor(label), index)


def _glyphs(side: int) -> Tensor:
    """The ten digits of Pillow's own typeface, [10,side,side] in 0..1."""
    from PIL import Image, ImageDraw, ImageFont

    pictures = []
    for digit in range(10):
        picture = Image.new("L", (side, side))
        font = ImageFont.load_default(size=side)
        ImageDraw.Draw(picture).text((side / 2, side / 2), str(digit), fill=255, font=font, anchor="mm")
        pictures.append(torch.from_numpy(np.asarray(picture).astype(np.float32) / 255))
    return torch.stack(pictures)
