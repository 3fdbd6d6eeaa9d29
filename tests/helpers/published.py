"""Features that the published codes were run on, and what is compared."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fewtokens.core import registry
from fewtokens.core.tokens import Tokens


def wave(T: int, H: int, W: int, C: int, step: float = 0.37) -> Tokens:
    """Features sin(i**1.5 * step) in raster order, made in float64."""
    x = torch.sin(torch.arange(T * H * W * C, dtype=torch.float64) ** 1.5 * step)
    return Tokens.from_cells(x.float().reshape(1, T, H, W, C))


def waves(T: int, H: int, W: int, C: int = 8) -> Tensor:
    """[1,T,H,W,C]: patches of 2x3 cells that are nearly alike, scenes that change, a small ripple."""
    t, y, u, c = np.meshgrid(*(np.arange(side, dtype=np.float64) for side in (T, H, W, C)), indexing="ij")
    scene = np.floor(t * 5 / (2 * T))
    place = (c + 1) * 0.61 * np.floor(y / 2) + (c * c % 7 + 1) * 0.43 * np.floor(u / 3)
    ripple = 0.15 * np.cos(1.9 * t * (c + 1) + 2.3 * y + 3.1 * u)
    return torch.from_numpy(np.sin(place + 1.7 * scene * (c % 3) + c) + ripple).float()[None]


def reduced(spec: str, x: Tensor, **cues: Tensor) -> Tokens:
    (method,) = registry.build(spec)
    return method(Tokens.from_cells(x), **cues)


def kept(out: Tokens) -> list[int]:
    return (out.assignment[0] >= 0).nonzero().flatten().tolist()


def sums(out: Tokens) -> list[float]:
    """Of all values and of their squares."""
    x = out.features[0].double()
    return [float(x.sum()), float(x.square().sum())]
