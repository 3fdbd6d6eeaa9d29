"""Q-Former: learned queries that look at one another and, in every second layer, at the video."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fewtokens.core.method import Resampled, Resampler, load_weights
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.per_frame import check_dim
from fewtokens.methods.ops.resample import (
    Attention,
    Places,
    check_counts,
    counts_of,
    features_of,
    feed_forward,
    resampled,
    seen_by_all,
)


class QFormer(Resampler):
    """`keep` queries for the whole video, through a BERT whose layers 0, 2, 4, ... also look at the video.

    BLIP-2 (arXiv 2301.12597), its image part: no text, no pre-training objectives. As in BERT the
    LayerNorm comes after each residual. It differs from the paper: one width throughout (there 768, with an encoder
    of another), all tokens of the video at once, their places added to them as in `perceiver` (the paper has single
    images), no dropout, attention without biases, an epsilon of 1e-5 in LayerNorms (1e-12 there).

    Attribution: the attention to the video's tokens, averaged over heads and over the layers that look at it, is the
    soft weights. The tokens come in the order of their mean time.

    Args:
        keep: tokens of the whole video, a count.
        dim: channels of the features.
        num_layers: layers; 12 in the paper.
        heads: of the attention; the largest number up to this that divides `dim`.
        checkpoint: a safetensors file with trained parameters; None draws them.
    """

    learned = True
    paper = "BLIP-2, arXiv 2301.12597"
    license = "written from the paper; reference code BSD-3-Clause"
    cost = "a layer: 12*M*C*C + 2*M*M*C MACs; every second one 2*(M+N)*C*C + 2*M*N*C more"

    def __init__(
        self,
        keep: int = 32,
        *,
        dim: int = 384,
        num_layers: int = 12,
        heads: int = 12,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        self.take_budget(keep, units=("count",))
        check_counts(num_layers=num_layers, heads=heads)
        self.dim, self.num_layers, self.heads = dim, num_layers, heads
        self.checkpoint = checkpoint
        self.queries = nn.Parameter(0.02 * torch.randn(keep, dim))
        self.norm_queries, self.norm_seen = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.places = Places(dim)
        self.layers = nn.ModuleList(Layer(dim, heads, looks=number % 2 == 0) for number in range(num_layers))
        load_weights(self, checkpoint)

    def resample(self, tokens: Tokens, **cues: Any) -> Resampled:
        check_dim(self.name, tokens.C, self.dim)
        x = self.norm_seen(features_of(tokens, self.queries.dtype) + self.places(tokens))
        queries = self.norm_queries(self.queries).expand(tokens.B, -1, -1)
        looks = []
        for layer in self.layers:
            queries, look = layer(queries, x, tokens.mask)
            if look is not None:
                looks.append(look)
        attention = seen_by_all(torch.stack(looks).mean(0))
        return resampled(tokens, queries, attention, counts_of(tokens, self.keep))


class Layer(nn.Module):
    """One layer: among the queries, at the video where it `looks`, MLP; a LayerNorm after each."""

    def __init__(self, dim: int, heads: int, *, looks: bool) -> None:
        super().__init__()
        self.attention, self.norm1 = Attention(dim, heads), nn.LayerNorm(dim)
        self.cross = Attention(dim, heads) if looks else None
        self.norm2 = nn.LayerNorm(dim) if looks else nn.Identity()
        self.mlp, self.norm3 = feed_forward(dim), nn.LayerNorm(dim)

    def forward(self, queries: Tensor, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """New queries [B,M,C], and how they looked at x, [B,M,N], or None."""
        queries = self.norm1(queries + self.attention(queries, queries))
        look = None
        if self.cross is not None:
            mixed, look = self.cross.look(queries, x, mask)
            queries = self.norm2(queries + mixed)
        return self.norm3(queries + self.mlp(queries)), look
