"""Fixed position embeddings: sines and cosines."""

from __future__ import annotations

import torch
from torch import Tensor


def sines(count: int, dim: int, start: int = 0, *, device: torch.device) -> Tensor:
    """The embeddings of positions start..start+count-1, float32 [count,dim]: sines, then cosines.

    Pair i of the dim/2 pairs turns by 10000^(-2i/dim) per position (arXiv 1706.03762).
    """
    pairs = torch.arange(dim // 2, dtype=torch.float64, device=device)
    positions = torch.arange(start, start + count, dtype=torch.float64, device=device)
    angles = positions[:, None] * 10_000.0 ** (-pairs / (dim // 2))
    return torch.cat([angles.sin(), angles.cos()], 1).float()


def sines_of_cells(T: int, H: int, W: int, dim: int, start: int = 0, *, device: torch.device) -> Tensor:
    """The embeddings of the cells of frames start..start+T-1, float32 [T,H,W,dim], as in LARP (arXiv 2410.21264).

    The sum of one of time and one of place, of which columns have the first half of the channels and rows the second.
    `dim` is a multiple of 4.
    """
    frames = sines(T, dim, start, device=device)[:, None, None]
    rows = sines(H, dim // 2, device=device)[:, None].expand(H, W, -1)
    columns = sines(W, dim // 2, device=device).expand(H, W, -1)
    return frames + torch.cat([columns, rows], -1)
