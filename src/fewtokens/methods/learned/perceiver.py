"""Perceiver resampler: learned latents look at all tokens of the video, layer after layer."""

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


class Perceiver(Resampler):
    """`keep` learned latents for the whole video; in each layer they look at its tokens and at one another.

    Perceiver (arXiv 2103.03206) as the resampler of Flamingo (arXiv 2204.14198).
    Layer: latents + attention(LN(latents), [LN(x), LN(latents)]), then + MLP(LN(latents)) of four times the width;
    at the end a LayerNorm. It differs from the paper: the place of a token is a learned layer of sines of time, row
    and column in place of one learned vector for each frame, so any length and tokens that another method left will
    do; heads share `dim` among them in place of 64 channels each; the MLP has biases (OpenFlamingo's has none).

    Attribution: the attention to the video's tokens, averaged over heads and layers, is the soft weights. The
    tokens come in the order of their mean time.

    Args:
        keep: tokens of the whole video, a count.
        dim: channels of the features.
        num_layers: layers, each with its own parameters.
        heads: of the attention; the largest number up to this that divides `dim`.
        checkpoint: a safetensors file with trained parameters; None draws them.
    """

    learned = True
    paper = "Flamingo, arXiv 2204.14198; Perceiver, arXiv 2103.03206"
    license = "written from the papers"
    cost = "a layer: 2*(N+M)*C*C + 2*M*(N+M)*C + 10*M*C*C MACs"

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
        self.take_budget(keep, units=("count",))
        check_counts(num_layers=num_layers, heads=heads)
        self.dim, self.num_layers, self.heads = dim, num_layers, heads
        self.checkpoint = checkpoint
        self.latents = nn.Parameter(torch.randn(keep, dim))
        self.places = Places(dim)
        self.layers = nn.ModuleList(Layer(dim, heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        load_weights(self, checkpoint)

    def resample(self, tokens: Tokens, **cues: Any) -> Resampled:
        check_dim(self.name, tokens.C, self.dim)
        x = features_of(tokens, self.latents.dtype) + self.places(tokens)
        latents = self.latents.expand(tokens.B, -1, -1)
        looks = []
        for layer in self.layers:
            latents, look = layer(latents, x, tokens.mask)
            looks.append(look)
        attention = seen_by_all(torch.stack(looks).mean(0))
        return resampled(tokens, self.norm(latents), attention, counts_of(tokens, self.keep))


class Layer(nn.Module):
    """One layer of the resampler."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm_latents, self.norm_seen = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm_mlp, self.mlp = nn.LayerNorm(dim), feed_forward(dim)

    def forward(self, latents: Tensor, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """New latents [B,M,C], and how they looked at x: [B,M,N], what went to the latents themselves left out."""
        asking = self.norm_latents(latents)
        seen = torch.cat([self.norm_seen(x), asking], 1)
        real = torch.cat([mask, mask.new_ones(latents.shape[:2])], 1)
        mixed, look = self.attention.look(asking, seen, real)
        latents = latents + mixed
        return latents + self.mlp(self.norm_mlp(latents)), look[..., : x.shape[1]]
