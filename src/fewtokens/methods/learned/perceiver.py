"""Perceiver resampler: learned latents attend to all tokens of the video in each layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fewtokens.core.method import Resampled, Resampler, load_weights
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.per_frame import check_dim
from fewtokens.methods.ops.resample import (
    Attention,
    PositionEmbedding,
    attribute_by_attention,
    check_counts,
    constant_count,
    feed_forward,
    masked_features,
    with_attention_floor,
)


class Perceiver(Resampler):
    """Resamples a video to learned latents that attend to all its tokens in each layer.

    Perceiver (arXiv 2103.03206) as the resampler of Flamingo (arXiv 2204.14198). Each layer computes latents +
    attention(LN(latents), [LN(x), LN(latents)]), then + MLP(LN(latents)) with a hidden width of 4 * `dim`; a LayerNorm
    follows the last layer. Differences from the paper: positions are a learned projection of sines of time, row and
    column instead of one learned vector per frame, so any video length and the output of other methods work; the heads
    split `dim` instead of having 64 channels each; the MLP has biases (OpenFlamingo's has none).

    Attribution: the soft weights are the attention to the tokens of the video, averaged over heads and layers. Outputs
    are sorted by their mean time.

    Args:
        keep: number of output tokens per video, at least 1. Default: 64.
        dim: channels of the features.
        num_layers: number of layers, each with separate parameters.
        heads: maximum number of attention heads; the largest number up to this that divides `dim` is used.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    paper = "Flamingo, arXiv 2204.14198; Perceiver, arXiv 2103.03206"
    license = "written from the papers"
    cost = "per layer: 2*(N+M)*C*C + 2*M*(N+M)*C + 10*M*C*C MACs"

    def __init__(
        self,
        keep: int = 64,
        *,
        dim: int = 384,
        num_layers: int = 6,
        heads: int = 8,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        self.set_budget(keep, units=("count",))
        check_counts(num_layers=num_layers, heads=heads)
        self.dim, self.num_layers, self.heads = dim, num_layers, heads
        self.checkpoint = checkpoint
        self.latents = nn.Parameter(torch.randn(keep, dim))
        self.places = PositionEmbedding(dim)
        self.layers = nn.ModuleList(Layer(dim, heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        load_weights(self, checkpoint)

    def resample(self, tokens: Tokens, **cues: Any) -> Resampled:
        check_dim(self.name, tokens.C, self.dim)
        x = masked_features(tokens, self.latents.dtype) + self.places(tokens)
        latents = self.latents.expand(tokens.B, -1, -1)
        weights = []
        for layer in self.layers:
            latents, attention = layer(latents, x, tokens.mask)
            weights.append(attention)
        attention = with_attention_floor(torch.stack(weights).mean(0))
        return attribute_by_attention(tokens, self.norm(latents), attention, constant_count(tokens, self.keep))


class Layer(nn.Module):
    """One layer of the resampler."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm_latents, self.norm_seen = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm_mlp, self.mlp = nn.LayerNorm(dim), feed_forward(dim)

    def forward(self, latents: Tensor, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns new latents [B,M,C] and their attention to x, [B,M,N] (attention to the latents is excluded)."""
        queries = self.norm_latents(latents)
        context = torch.cat([self.norm_seen(x), queries], 1)
        real = torch.cat([mask, mask.new_ones(latents.shape[:2])], 1)
        mixed, attention = self.attention.attend(queries, context, real)
        latents = latents + mixed
        return latents + self.mlp(self.norm_mlp(latents)), attention[..., : x.shape[1]]
