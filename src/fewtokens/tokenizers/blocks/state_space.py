"""State-space blocks over the cells of a video: scans through each frame, then through time at each place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fewtokens.methods.ops.scan import Direction, Mixer
from fewtokens.tokenizers.blocks.transformer import checked_stride

# Channels of the state of each channel, as in Mamba.
_STATE = 16


class StateSpaceBlock(nn.Module):
    """Mixes the cells of each frame by scans in both directions, then each place over time by a scan forward; causal.

    The scans are those of Mamba (arXiv 2312.00752) in raster order; mixing within a frame is the block of Vision Mamba
    (arXiv 2401.09417). All scans have 2 * `dim` channels.

    Args:
        dim: number of channels C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.space = Mixer(dim, _STATE)
        self.norm, self.inside = nn.LayerNorm(dim), nn.Linear(dim, 4 * dim, bias=False)
        self.onward, self.out = Direction(2 * dim, _STATE), nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B,T,H,W,C] to [B,T,H,W,C]."""
        B, _, H, W, _ = x.shape
        frames = rearrange(x, "b t h w c -> (b t) (h w) c")
        frames = self.space(frames, _all_real(frames))
        places = rearrange(frames, "(b t) (h w) c -> (b h w) t c", b=B, h=H)
        u, gate = self.inside(self.norm(places)).chunk(2, 2)
        places = places + self.out(self.onward(u, _all_real(places)) * F.silu(gate))
        return rearrange(places, "(b h w) t c -> b t h w c", h=H, w=W)


def _all_real(x: Tensor) -> Tensor:
    return x.new_ones(x.shape[:2], dtype=torch.bool)


def checked_halves(stride: Sequence[int], blocks: Sequence[int]) -> tuple[int, int, int]:
    """The stride of two levels.

    Raises:
        ValueError: it is not three even counts, or `blocks` not two counts.
    """
    checked = checked_stride(stride)
    if any(size % 2 for size in checked):
        raise ValueError(f"stride must be even, since cells of half the size are pooled, got {checked}")
    if len(blocks) != 2 or min(blocks) < 0:
        raise ValueError(f"blocks must be two counts, before and after pooling, got {tuple(blocks)}")
    return checked
