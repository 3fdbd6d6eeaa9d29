"""The decoder of masked pre-training on pairs of frames: one block for all objectives.

A block is cross-attention to a memory, self-attention, MLP, all pre-norm (SiamMAE, arXiv 2305.14344; RSP, arXiv
2406.07398; Token Bottleneck). Sequences without a memory go through the same blocks and skip the cross-attention: so
Token Bottleneck's path and its auxiliary one share every other weight, and a batch of both runs through them at once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewtokens.encoders.config import ViTConfig
from fewtokens.encoders.transformer import Block, make_attention
from fewtokens.networks.masking import Mask, sincos_positions


class PairBlock(Block):
    """Cross-attention where there is a memory, then self-attention and MLP."""

    def __init__(self, config: ViTConfig, *, cross: bool) -> None:
        super().__init__(config)
        if cross:
            self.norm_query = nn.LayerNorm(config.dim, config.eps)
            self.norm_memory = nn.LayerNorm(config.dim, config.eps)
            self.cross = make_attention(config, cross=True)

    def forward(self, x: Tensor, drop: float = 0.0, memory: Tensor | None = None) -> Tensor:
        """The last len(memory) sequences look at theirs; those before them have none."""
        if memory is None:
            return super().forward(x, drop)
        alone, looking = x[: len(x) - len(memory)], x[len(x) - len(memory) :]
        looking = looking + self.cross(self.norm_query(looking), self.norm_memory(memory))
        return super().forward(torch.cat([alone, looking]) if len(alone) else looking, drop)


class PairDecoder(nn.Module):
    """Tokens of the encoder to pixels of patches.

    Args:
        features: channels of the encoder.
        grid: rows and columns of patches.
        patch_size: their side in pixels.
        dim, depth, num_heads: its own channels, blocks and attention heads.
        cross: whether blocks have cross-attention; without it a memory is refused.
    """

    positions: Tensor

    def __init__(
        self,
        features: int,
        *,
        grid: tuple[int, int],
        patch_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        cross: bool,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(features, dim)
        # Three axes, so that weight decay reaches it, as it does in the published code.
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("positions", sincos_positions(*grid, dim).flatten(0, 1), persistent=False)
        config = ViTConfig(dim=dim, depth=depth, num_heads=num_heads)
        self.blocks = nn.ModuleList(PairBlock(config, cross=cross) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, config.eps)
        self.pixels = nn.Linear(dim, 3 * patch_size**2)
        self.has_cross = cross

    def memory(self, features: Tensor) -> Tensor:
        """Encoded prefix and all patches [B,P+N,C] to what is looked at [B,P+N,D]: projected, patches with position."""
        return self.placed(self.embed(features))

    def slots(self, hints: Tensor, mask: Mask) -> Tensor:
        """Encoded prefix and visible patches [B,P+K,C] to [B,P+N,D]: each at its place, mask tokens at the others."""
        x = self.embed(hints)
        prefix = x.shape[1] - mask.visible.shape[1]
        places = self.mask_token.to(x.dtype).expand(*mask.hidden.shape, -1)
        places = places.scatter(1, mask.visible[..., None].expand(-1, -1, x.shape[-1]), x[:, prefix:])
        return self.placed(torch.cat([x[:, :prefix], places], 1))

    def queries(self, batch: int) -> Tensor:
        """Mask tokens in the place of the class token and of every patch, [B,1+N,D]."""
        return self.placed(self.mask_token.expand(batch, 1 + len(self.positions), -1))

    def placed(self, x: Tensor) -> Tensor:
        """Projected tokens [B,P+N,D] with the positions of the N patches; what comes before them has none."""
        return x + F.pad(self.positions, (0, 0, x.shape[1] - len(self.positions), 0))

    def forward(self, x: Tensor, memory: Tensor | None = None, *, recompute: bool = False) -> Tensor:
        """Sequences [B,P+N,D] to the pixels of their patches [B,N,patch*patch*3].

        Args:
            x: sequences; what comes before the last N tokens of each gives no pixels.
            memory: [M,S,D] for the last M sequences; the others see nothing but themselves.
            recompute: activations in the backward pass instead of keeping them.
        """
        assert memory is None or self.has_cross

        for block in self.blocks:
            x = checkpoint(block, x, 0.0, memory, use_reentrant=False) if recompute else block(x, 0.0, memory)
        return self.pixels(self.norm(x[:, x.shape[1] - len(self.positions) :]))
