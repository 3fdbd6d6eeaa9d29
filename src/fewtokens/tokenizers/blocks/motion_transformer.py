"""The transformers of motion vectors of Video-LaVIT, with fewer cells from stage to stage."""

from __future__ import annotations

import math

from einops import rearrange
from torch import Tensor, nn

from fewtokens.tokenizers.blocks.transformer import VideoTransformer

# Fields, rows and columns that a cell of a stage combines.
STRIDES = ((1, 2, 2), (2, 1, 1), (2, 1, 1), (2, 2, 2))
# Those of a token.
STRIDE = (8, 4, 4)


class MotionEncoder(nn.Module):
    """Maps fields of vectors to tokens: in each of four stages, a linear layer combines cells, and blocks follow.

    Video-LaVIT (arXiv 2402.03161).

    Args:
        dim: channels of a token.
        width, depth, heads: channels, blocks per stage and attention heads.
    """

    def __init__(self, dim: int, *, width: int, depth: int, heads: int) -> None:
        super().__init__()
        widths = (2, width, width, width)
        self.merge = nn.ModuleList(nn.Linear(math.prod(s) * w, width) for s, w in zip(STRIDES, widths, strict=True))
        self.stages = nn.ModuleList(VideoTransformer(width, (("full", depth),), heads) for _ in STRIDES)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, dim))

    def forward(self, vectors: Tensor) -> Tensor:
        """Maps vectors [B,T,2,H,W], with multiples of 8 fields and 4 rows and columns, to [B,T/8,H/4,W/4,C]."""
        x = vectors.movedim(2, -1)
        for (t, h, w), merge, stage in zip(STRIDES, self.merge, self.stages, strict=True):
            x = rearrange(x, "b (t p) (h q) (w r) c -> b t h w (p q r c)", p=t, q=h, r=w)
            x = stage(merge(x))
        tokens: Tensor = self.head(x)
        return tokens


class MotionDecoder(nn.Module):
    """The mirror of `MotionEncoder`."""

    def __init__(self, dim: int, *, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(dim, width), nn.Tanh(), nn.Linear(width, width))
        self.stages = nn.ModuleList(VideoTransformer(width, (("full", depth),), heads) for _ in STRIDES)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in STRIDES)
        widths = (width, width, width, 2)
        self.divide = nn.ModuleList(
            nn.Linear(width, math.prod(s) * w) for s, w in zip(STRIDES[::-1], widths, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens [B,T',H',W',C] to vectors [B,8T',2,4H',4W']."""
        x = self.embed(x)
        for (t, h, w), stage, norm, divide in zip(STRIDES[::-1], self.stages, self.norms, self.divide, strict=True):
            x = divide(norm(stage(x)))
            x = rearrange(x, "b t h w (p q r c) -> b (t p) (h q) (w r) c", p=t, q=h, r=w)
        return x.movedim(-1, 2)
