"""Features that the authors' published code was run on, and the compared quantities."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fewtokens.core import registry
from fewtokens.core.tokens import Tokens


def wave(T: int, H: int, W: int, C: int, step: float = 0.37) -> Tokens:
    """Features sin(i**1.5 * step) in raster order, computed in float64."""
    x = torch.sin(torch.arange(T * H * W * C, dtype=torch.float64) ** 1.5 * step)
    return Tokens.from_cells(x.float().reshape(1, T, H, W, C))


def waves(T: int, H: int, W: int, C: int = 8) -> Tensor:
    """[1,T,H,W,C]: nearly constant blocks of 2x3 cells, changing scenes and a small ripple."""
    t, y, u, c = np.meshgrid(*(np.arange(side, dtype=np.float64) for side in (T, H, W, C)), indexing="ij")
    scene = np.floor(t * 5 / (2 * T))
    block = (c + 1) * 0.61 * np.floor(y / 2) + (c * c % 7 + 1) * 0.43 * np.floor(u / 3)
    ripple = 0.15 * np.cos(1.9 * t * (c + 1) + 2.3 * y + 3.1 * u)
    return torch.from_numpy(np.sin(block + 1.7 * scene * (c % 3) + c) + ripple).float()[None]


def run_spec(spec: str, x: Tensor, **cues: Tensor) -> Tokens:
    (method,) = registry.build(spec)
    return method(Tokens.from_cells(x), **cues)


def kept_cells(out: Tokens) -> list[int]:
    return (out.assignment[0] >= 0).nonzero().flatten().tolist()


def sum_and_square_sum(out: Tokens) -> list[float]:
    """Returns the sum of all features and the sum of their squares."""
    x = out.features[0].double()
    return [float(x.sum()), float(x.square().sum())]
