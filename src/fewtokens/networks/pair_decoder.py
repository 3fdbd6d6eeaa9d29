"""The decoder of masked pre-training on pairs of frames, shared by all objectives.

A block is cross-attention to a memory, self-attention and an MLP, all pre-norm (SiamMAE, arXiv 2305.14344; RSP, arXiv
2406.07398; Token Bottleneck). Sequences without a memory skip the cross-attention. The main and auxiliary paths of
Token Bottleneck therefore share all other weights and run as one batch.
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
    """Cross-attention if there is a memory, then self-attention and MLP."""

    def __init__(self, config: ViTConfig, *, cross: bool) -> None:
        super().__init__(config)
        if cross:
            self.norm_query = nn.LayerNorm(config.dim, config.eps)
            self.norm_memory = nn.LayerNorm(config.dim, config.eps)
            self.cross = make_attention(config, cross=True)

    def forward(self, x: Tensor, drop_rate: float = 0.0, memory: Tensor | None = None) -> Tensor:
        """Applies the block; the last len(memory) sequences cross-attend to the memory, those before them do not."""
        if memory is None:
            return super().forward(x, drop_rate)
        others, attending = x[: len(x) - len(memory)], x[len(x) - len(memory) :]
        attending = attending + self.cross(self.norm_query(attending), self.norm_memory(memory))
        return super().forward(torch.cat([others, attending]) if len(others) else attending, drop_rate)


class PairDecoder(nn.Module):
    """Decodes encoder tokens to the pixels of patches.

    Args:
        features: channels of the encoder.
        grid: rows and columns of patches.
        patch_size: side of a patch in pixels.
        dim, depth, num_heads: channels, blocks and attention heads of the decoder.
        cross: whether blocks have cross-attention (required for a memory).
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
        # Three axes, so that weight decay applies to it, as in the published code.
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("positions", sincos_positions(*grid, dim).flatten(0, 1), persistent=False)
        config = ViTConfig(dim=dim, depth=depth, num_heads=num_heads)
        self.blocks = nn.ModuleList(PairBlock(config, cross=cross) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, config.eps)
        self.pixels = nn.Linear(dim, 3 * patch_size**2)
        self.has_cross = cross

    def memory(self, features: Tensor) -> Tensor:
        """Projects encoded prefix and all patches [B,P+N,C] to a memory [B,P+N,D], with positions added to patches."""
        return self.add_positions(self.embed(features))

    def slots(self, hints: Tensor, mask: Mask) -> Tensor:
        """Projects encoded prefix and visible patches [B,P+K,C] to [B,P+N,D], with mask tokens for masked patches."""
        x = self.embed(hints)
        prefix = x.shape[1] - mask.visible.shape[1]
        patches = self.mask_token.to(x.dtype).expand(*mask.hidden.shape, -1)
        patches = patches.scatter(1, mask.visible[..., None].expand(-1, -1, x.shape[-1]), x[:, prefix:])
        return self.add_positions(torch.cat([x[:, :prefix], patches], 1))

    def queries(self, batch: int) -> Tensor:
        """Returns mask tokens for the class token and all patches, [B,1+N,D]."""
        return self.add_positions(self.mask_token.expand(batch, 1 + len(self.positions), -1))

    def add_positions(self, x: Tensor) -> Tensor:
        """Adds positions to the N patches of projected tokens [B,P+N,D]; the prefix has none."""
        return x + F.pad(self.positions, (0, 0, x.shape[1] - len(self.positions), 0))

    def forward(self, x: Tensor, memory: Tensor | None = None, *, recompute: bool = False) -> Tensor:
        """Decodes sequences [B,P+N,D] to the pixels of their patches [B,N,patch*patch*3].

        Args:
            x: sequences; only the last N tokens are decoded to pixels.
            memory: [M,S,D] for the last M sequences; the others have none.
            recompute: recompute activations in the backward pass (activation checkpointing).
        """
        assert memory is None or self.has_cross

        for block in self.blocks:
            x = checkpoint(block, x, 0.0, memory, use_reentrant=False) if recompute else block(x, 0.0, memory)
        return self.pixels(self.norm(x[:, x.shape[1] - len(self.positions) :]))
