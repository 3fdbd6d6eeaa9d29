"""Clips in which some pixel patches stay the same between frames."""

from __future__ import annotations

import torch

from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens


def pixel_clip(T=5, H=3, W=4, P=2, seed=0):
    """Tokens, and their 2x2-pixel patches [1,S,P,12], some of which stay the same between frames."""
    g = torch.Generator().manual_seed(seed)
    frames = [torch.rand(H * W, P, 12, generator=g)]
    frames[0][:] = frames[0][:, :1]
    for _ in range(T - 1):
        fresh = torch.rand(H * W, 1, 12, generator=g).expand(-1, P, -1)
        stays = torch.rand(H * W, 1, 1, generator=g) < 0.6
        frames.append(torch.where(stays, frames[-1][:, -1:].expand(-1, P, -1), fresh))
    pixels = torch.cat(frames)[None]
    return Tokens.from_cells(torch.randn(1, T * H * W, 8, generator=g), Grid(T, H, W)), pixels
