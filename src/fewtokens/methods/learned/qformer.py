"""Q-Former: learned queries with self-attention and, in every second layer, cross-attention to the video."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fewtokens.core.method import Resampled, Resampler, load_weights
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.per_frame import check_dim
from fewtokens.methods.ops.resample import (
    PositionEmbedding,
    QueryLayer,
    attribute_by_attention,
    check_counts,
    constant_count,
    masked_features,
    with_attention_floor,
)


class QFormer(Resampler):
    """Resamples a video to learned queries with a BERT that cross-attends in every second layer.

    The Q-Former of BLIP-2 (arXiv 2301.12597), image part only: no text input, no pre-training objectives. Layers 0, 2,
    4, ... cross-attend to the video. As in BERT, a LayerNorm follows each residual. Differences from the paper: one
    width throughout (768 there, next to an encoder of another width), attention to all tokens of the video with the
    position embeddings of `perceiver` (single images there), no dropout, attention without biases, and a LayerNorm
    epsilon of 1e-5 (1e-12 there).

    Attribution: the soft weights are the cross-attention, averaged over heads and layers. Outputs are sorted by their
    mean time.

    Args:
        keep: number of output tokens per video, at least 1. Default: 32.
        dim: channels of the features.
        num_layers: number of layers. Default: 12, as in the paper.
        heads: maximum number of attention heads; the largest number up to this that divides `dim` is used.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    paper = "BLIP-2, arXiv 2301.12597"
    license = "written from the paper; reference code BSD-3-Clause"
    cost = "per layer: 12*M*C*C + 2*M*M*C MACs, plus 2*(M+N)*C*C + 2*M*N*C in every second one"

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
        self.set_budget(keep, units=("count",))
        check_counts(num_layers=num_layers, heads=heads)
        self.dim, self.num_layers, self.heads = dim, num_layers, heads
        self.checkpoint = checkpoint
        self.queries = nn.Parameter(0.02 * torch.randn(keep, dim))
        self.norm_queries, self.norm_seen = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.places = PositionEmbedding(dim)
        self.layers = nn.ModuleList(QueryLayer(dim, heads, cross=number % 2 == 0) for number in range(num_layers))
        load_weights(self, checkpoint)

    def resample(self, tokens: Tokens, **cues: Any) -> Resampled:
        check_dim(self.name, tokens.C, self.dim)
        x = self.norm_seen(masked_features(tokens, self.queries.dtype) + self.places(tokens))
        queries = self.norm_queries(self.queries).expand(tokens.B, -1, -1)
        weights = []
        for layer in self.layers:
            queries, attention = layer(queries, x, tokens.mask)
            if attention is not None:
                weights.append(attention)
        attention = with_attention_floor(torch.stack(weights).mean(0))
        return attribute_by_attention(tokens, queries, attention, constant_count(tokens, self.keep))
