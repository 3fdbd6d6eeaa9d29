"""Self-attention within a frame or over time, for convolutional encoders and decoders."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.tokenizers.blocks.causal_conv import Cache, CausalConv3d
from fewtokens.tokenizers.blocks.residual import ConvNorm, NormKind


class CellAttention(nn.Module):
    """Adds to each cell what it attends to, with one head.

    Args:
        dim: channels.
        over: "frame" for the cells of its frame, "past" for its position in its frame and all earlier ones, which
            needs whole videos, not chunks.
        norm, groups: of the normalization in front, see `ConvNorm`.
    """

    def __init__(
        self, dim: int, over: Literal["frame", "past"] = "frame", *, norm: NormKind = "channel", groups: int = 32
    ) -> None:
        super().__init__()
        self.over = over
        self.norm = ConvNorm(dim, norm, groups=groups, act=False)
        self.q, self.k, self.v, self.out = (CausalConv3d(dim, dim, (1, 1, 1)) for _ in range(4))

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        normal = self.norm(x)
        q, k, v = (part(normal) for part in (self.q, self.k, self.v))
        if self.over == "frame":
            q, k, v = (part.flatten(3).permute(0, 2, 3, 1) for part in (q, k, v))  # [B,T,H*W,C]
            mixed = F.scaled_dot_product_attention(q, k, v).permute(0, 3, 1, 2)
        else:
            q, k, v = (part.flatten(3).permute(0, 3, 2, 1) for part in (q, k, v))  # [B,H*W,T,C]
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).permute(0, 3, 2, 1)
        attended: Tensor = self.out(mixed.reshape(x.shape)) + x
        return attended
