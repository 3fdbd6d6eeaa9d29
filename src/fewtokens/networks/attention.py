"""Blocks whose attention is factorised over space and time (ViViT, arXiv 2103.15691, models 3 and 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.encoders.config import ViTConfig
from fewtokens.encoders.transformer import Block, make_attention


class FactorisedSelfBlock(Block):
    """Attention within each frame, then across time at each place, then the MLP (model 3, in the paper's order; the
    published code takes time first where its config does not say).

    The temporal attention starts at zero, so that a block with the weights of an image model begins as that model
    on every frame. Tokens [B,T,N,C].
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.norm_time = nn.LayerNorm(config.dim, config.eps)
        self.attention_time = make_attention(config)

    def forward(self, x: Tensor, drop: float = 0.0) -> Tensor:
        B, T = x.shape[:2]
        x = self.dropped(x, self.first(x.flatten(0, 1))[0].unflatten(0, (B, T)), drop)
        places = x.transpose(1, 2).flatten(0, 1)  # [B*N,T,C]
        places = places + self.attention_time(self.norm_time(places))
        x = self.dropped(x, places.unflatten(0, (B, -1)).transpose(1, 2), drop)
        return self.dropped(x, self.second(x), drop)


class FactorisedDotBlock(Block):
    """The first half of the heads attends within the frame, the other half across time at their place (model 4).

    As many parameters as a plain block. Tokens [B,T,N,C]. The published code (scenic) gives the first half of the heads
    to time: weights from there need the halves of queries, keys, values and of the output layer's columns swapped.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        if config.num_heads % 2:
            raise ValueError(f"factorised dot-product attention splits the heads in halves, got {config.num_heads}")

    def forward(self, x: Tensor, drop: float = 0.0) -> Tensor:
        B, T, N, _ = x.shape
        half = self.attention.num_heads // 2
        # [B*T,heads,N,d], each of queries, keys and values
        parts = self.attention.project(self.norm1(x).flatten(0, 1))
        q, k, v = (part[:, :half] for part in parts)
        space = F.scaled_dot_product_attention(q, k, v).unflatten(0, (B, T))  # [B,T,h,N,d]
        q, k, v = (part[:, half:].unflatten(0, (B, T)).permute(0, 3, 2, 1, 4).flatten(0, 1) for part in parts)
        time = F.scaled_dot_product_attention(q, k, v)  # [B*N,h,T,d]
        time = time.unflatten(0, (B, N)).permute(0, 3, 2, 1, 4)  # [B,T,h,N,d]
        mixed = self.attention.out(torch.cat([space, time], 2).transpose(2, 3).flatten(3))
        x = self.dropped(x, self.scaled(x, mixed, self.scale1), drop)
        return self.dropped(x, self.second(x), drop)
