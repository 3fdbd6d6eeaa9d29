"""A synthetic dataset that requires temporal information: which digit is shown, and in which direction it moves."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from fewtokens.data.clips import Sample, View, combine_seeds
from fewtokens.video.clips import glyph

_DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}


class MovingDigits(Dataset[Sample]):
    """Clips of one digit that moves left, right, up or down over noise: 40 classes, new clips in every epoch.

    The plane is a torus and the start position is uniform, so a single frame shows the digit but not the direction:
    a network that ignores time has an accuracy of at most 1/4.

    Indexed by (epoch, index) or by index.

    Args:
        items: clips per epoch; class = index % 40 = 4 * digit + direction (left, right, up, down).
        frames: frames per clip.
        size: side of a frame in pixels.
        seed: random seed; use different seeds for training and test.
        noise: standard deviation of the gray noise, independent in every frame.
    """

    classes = tuple(f"{digit} {direction}" for digit in range(10) for direction in _DIRECTIONS)

    def __init__(self, items: int, *, frames: int = 8, size: int = 24, seed: int = 0, noise: float = 0.05) -> None:
        if min(items, frames, size) < 1:
            raise ValueError(f"items, frames and size must be at least 1, got {items}, {frames} and {size}")
        self.items, self.seed, self.noise, self.size = items, seed, noise, size
        self.view = View(frames=frames)
        side = max(6, round(size * 0.72))
        self._glyphs = torch.stack([torch.from_numpy(glyph(digit, side)) for digit in range(10)])

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        generator = torch.Generator().manual_seed(combine_seeds(self.seed, epoch, index))
        label = index % len(self.classes)
        down, right = list(_DIRECTIONS.values())[label % 4]
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
