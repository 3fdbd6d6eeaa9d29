"""Blocks whose attention is factorized over space and time (ViViT, arXiv 2103.15691, models 3 and 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.encoders.config import ViTConfig
from fewtokens.encoders.transformer import Block, make_attention


class FactorizedSelfBlock(Block):
    """Attention within each frame, then over time at each position, then the MLP (ViViT model 3).

    This is the order of the paper; the published code attends over time first by default. The temporal attention is
    initialized to zero, so a block with the weights of an image model initially equals that model on every frame.
    Tokens are [B,T,N,C].
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.norm_time = nn.LayerNorm(config.dim, config.eps)
        self.attention_time = make_attention(config)

    def forward(self, x: Tensor, drop_rate: float = 0.0) -> Tensor:
        B, T = x.shape[:2]
        x = self.drop_path(x, self.attention_half(x.flatten(0, 1))[0].unflatten(0, (B, T)), drop_rate)
        columns = x.transpose(1, 2).flatten(0, 1)  # [B*N,T,C]
        columns = columns + self.attention_time(self.norm_time(columns))
        x = self.drop_path(x, columns.unflatten(0, (B, -1)).transpose(1, 2), drop_rate)
        return self.drop_path(x, self.mlp_half(x), drop_rate)


class FactorizedDotBlock(Block):
    """Half of the heads attend within the frame, the others over time at their position (ViViT model 4).

    It has the same number of parameters as a standard block. Tokens are [B,T,N,C]. The first half of the heads is
    spatial; in the published code (scenic) it is temporal, so its weights require swapping the halves of queries, keys,
    values and of the columns of the output layer.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        if config.num_heads % 2:
            raise ValueError(f"num_heads must be even for factorized dot-product attention, got {config.num_heads}")

    def forward(self, x: Tensor, drop_rate: float = 0.0) -> Tensor:
        B, T, N, _ = x.shape
        half = self.attention.num_heads // 2
        # queries, keys and values, each [B*T,heads,N,d]
        parts = self.attention.project(self.norm1(x).flatten(0, 1))
        q, k, v = (part[:, :half] for part in parts)
        space = F.scaled_dot_product_attention(q, k, v).unflatten(0, (B, T))  # [B,T,h,N,d]
        q, k, v = (part[:, half:].unflatten(0, (B, T)).permute(0, 3, 2, 1, 4).flatten(0, 1) for part in parts)
        time = F.scaled_dot_product_attention(q, k, v)  # [B*N,h,T,d]
        time = time.unflatten(0, (B, N)).permute(0, 3, 2, 1, 4)  # [B,T,h,N,d]
        mixed = self.attention.out(torch.cat([space, time], 2).transpose(2, 3).flatten(3))
        x = self.drop_path(x, self.add_branch(x, mixed, self.scale1), drop_rate)
        return self.drop_path(x, self.mlp_half(x), drop_rate)
