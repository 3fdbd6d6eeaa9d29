"""Frames with one token for memories: unit vectors in the plane, by their angle."""

from __future__ import annotations

import math

import torch

from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens


def at_angles(*degrees: float, seconds: list[float] | None = None) -> Tokens:
    """Returns a video whose frames have one token, a unit vector at an angle."""
    angle = torch.tensor(degrees) * math.pi / 180
    features = torch.stack([angle.cos(), angle.sin()], 1)[None]
    return Tokens.from_cells(features, Grid(len(degrees), 1, 1, None if seconds is None else torch.tensor(seconds)))


def angles(tokens: Tokens) -> list[float]:
    """Returns the angle of each token of a video, in degrees rounded to a thousandth."""
    x, y = tokens.features[0].double().unbind(1)
    return [round(value, 3) for value in (torch.atan2(y, x) * 180 / math.pi).tolist()]


def stream(T: int, *, B: int = 1, H: int = 1, W: int = 1, C: int = 4, seed: int = 0, lengths: list[int] | None = None):
    """Returns random videos of T frames at 2 frames per second."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(B, T * H * W, C, generator=generator)
    lengths = None if lengths is None else torch.tensor(lengths)
    return Tokens.from_cells(features, Grid(T, H, W, torch.arange(T) / 2, lengths))


def cut(tokens: Tokens, start: int, stop: int) -> Tokens:
    """Returns the frames start..stop-1 of videos that have one token per cell and no lengths."""
    _, H, W = tokens.grid.shape
    times = tokens.grid.times
    grid = Grid(stop - start, H, W, None if times is None else times[..., start:stop])
    return Tokens.from_cells(tokens.features[:, start * H * W : stop * H * W], grid)
