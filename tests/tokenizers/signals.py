"""Different small inputs of tokenizers, by what they encode."""

from __future__ import annotations

import torch
from torch import Tensor

from fewtokens.video import synthetic

Size = tuple[int, int, int]


def signals(source: str, size: Size, count: int) -> Tensor:
    """Up to three different inputs of a source: videos, occupancy grids with four levels, sounds, or points."""
    T, height, width = size
    generator = torch.Generator().manual_seed(0)
    if source == "video":
        kinds = ("pan", "shapes", "noise")[:count]
        return torch.stack([synthetic(kind, frames=T, size=(height, width)).frames for kind in kinds])
    if source == "occupancy":
        return torch.randint(0, 4, (count, T, height, width, 4), generator=generator)
    if source == "audio":
        seconds = torch.arange(T) / 24_000
        return torch.stack([(2 * torch.pi * tone * seconds).sin() / 2 for tone in (440, 1000, 3000)[:count]])
    return torch.rand(count, width, 3, generator=generator) * torch.tensor([1, 0.5, 0.2])[:count, None, None]


def sizes(source: str, size: Size) -> list[Size]:
    """A size, one that does not fit, and the smallest in time."""
    T, height, width = size
    if source == "audio":
        return [size, (T - 3, 1, 1), (1, 1, 1)]
    if source == "points":
        return [size, (1, 1, width - 3), (1, 1, 1)]
    return [size, (T, height - 1, width - 3), (1, height, width)]


def crop(source: str, signal: Tensor, size: Size) -> Tensor:
    """The first part of inputs."""
    T, height, width = size
    if source == "audio":
        return signal[:, :T]
    if source == "points":
        return signal[:, :width]
    return signal[:, :T, ..., :height, :width] if source == "video" else signal[:, :T, :height, :width]
