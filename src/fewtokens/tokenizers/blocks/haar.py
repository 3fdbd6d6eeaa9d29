"""The Haar transform over frames, rows and columns, in front of and behind the networks of Cosmos."""

from __future__ import annotations

import torch
from torch import Tensor


def haar(x: Tensor, levels: int = 2) -> Tensor:
    """Means and half-differences of pairs of frames, rows and columns.

    Args:
        x: [B,C,T,H,W], with sizes that are multiples of 2 ** levels.
        levels: how often; each acts on all bands of the one before.

    Returns:
        [B, 8 ** levels * C, T / 2 ** levels, ...]; the first C channels are the means.
    """
    pair = x.new_tensor([[0.5, 0.5], [0.5, -0.5]])
    for _ in range(levels):
        B, C, T, H, W = x.shape
        pairs = x.reshape(B, C, T // 2, 2, H // 2, 2, W // 2, 2)
        x = torch.einsum("bctphqwr,ip,jq,kr->bijkcthw", pairs, pair, pair, pair).flatten(1, 4)
    return x


def inverse_haar(x: Tensor, levels: int = 2) -> Tensor:
    """The inverse of `haar`."""
    pair = x.new_tensor([[1.0, 1.0], [1.0, -1.0]])
    for _ in range(levels):
        B, C, T, H, W = x.shape
        bands = x.reshape(B, 2, 2, 2, C // 8, T, H, W)
        pairs = torch.einsum("bijkcthw,pi,qj,rk->bctphqwr", bands, pair, pair, pair)
        x = pairs.reshape(B, C // 8, 2 * T, 2 * H, 2 * W)
    return x
