"""Self-attention among the cells of a frame, for convolutional encoders and decoders."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.tokenizers.blocks.causal_conv import Cache, CausalConv3d
from fewtokens.tokenizers.blocks.residual import ConvNorm, NormKind


class FrameAttention(nn.Module):
    """Adds to each cell what it attends to within its frame, with one head.

    Args:
        dim: channels.
        norm, groups: of the normalization in front, see `ConvNorm`.
    """

    def __init__(self, dim: int, norm: NormKind = "channel", *, groups: int = 32) -> None:
        super().__init__()
        self.norm = ConvNorm(dim, norm, groups=groups, act=False)
        self.q, self.k, self.v, self.out = (CausalConv3d(dim, dim, (1, 1, 1)) for _ in range(4))

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        normal = self.norm(x)
        q, k, v = (part(normal).permute(0, 2, 3, 4, 1).flatten(2, 3) for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).unflatten(3, tuple(x.shape[3:]))
        attended: Tensor = x + self.out(mixed.transpose(1, 2))
        return attended
