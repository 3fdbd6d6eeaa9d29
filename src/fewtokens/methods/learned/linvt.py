"""LinVT: selects the highest-scoring tokens, averages them at several time scales, aggregates them given the text."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.method import Resampled, Resampler, load_weights
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.per_frame import check_dim
from fewtokens.methods.ops.resample import (
    Attention,
    PositionEmbedding,
    attention_weights,
    attribute_by_attention,
    check_counts,
    check_text,
    constant_count,
    feed_forward,
    fitting_heads,
    masked_features,
    split_heads,
    with_attention_floor,
)


class LinVt(Resampler):
    """Selects the highest-scoring tokens and aggregates them into a few text-conditioned ones.

    LinVT (arXiv 2412.05185). The spatio-temporal visual token refiner applies attention within each frame and then over
    time at each position, scores tokens with a linear layer, selects the best `selected` in their original order, and
    averages them over runs of each length in `scales`. The text-conditioned aggregation applies `num_layers` layers of
    self-attention among queries and cross-attention to these averages and to the text, then softmax(q k^T) V without
    value or output projection, so each head of an output token is a convex combination of selected tokens.

    Differences from the released code: samples of a batch do not attend to each other (there they do), and scores
    receive a gradient, because tokens are multiplied by the sigmoid of their score. The two refiner attentions have a
    norm and a residual; the query layers are pre-norm with an MLP (post-norm without one there). Released parameters
    therefore do not fit. Position embeddings are added before the first attention. Every row of the text counts, so
    remove padding.

    Attribution: the soft weights are the last attention, averaged over heads and spread over the runs; tokens that were
    not selected are dropped. Outputs are sorted by their mean time.

    Args:
        keep: number of output tokens per video, at least 1. Default: 32.
        dim: channels of the features.
        text_dim: channels of the cue "text" [B,L,D]; None for `dim`.
        selected: number of tokens to select per video (all tokens of a shorter video). Default: 1024, as in the paper.
        scales: lengths of the runs to average over.
        num_layers: number of query layers.
        heads: maximum number of attention heads; the largest number up to this that divides `dim` is used.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    full_grid = True
    paper = "LinVT, arXiv 2412.05185"
    license = "written from the paper"
    cost = "8*N*C*C + 2*N*(H*W+T)*C MACs, then K*C*(C + M) for K selected and averaged tokens"

    def __init__(
        self,
        keep: int = 32,
        *,
        dim: int = 384,
        text_dim: int | None = None,
        selected: int = 1024,
        scales: tuple[int, ...] = (1, 2, 4),
        num_layers: int = 2,
        heads: int = 8,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        self.set_budget(keep, units=("count",))
        check_counts(selected=selected, num_layers=num_layers, heads=heads)
        scales = tuple(scales)
        if not scales or any(not isinstance(scale, int) or scale < 1 for scale in scales):
            raise ValueError(f"scales must be run lengths of at least 1, such as (1, 2, 4), got {scales!r}")
        self.dim, self.text_dim, self.selected = dim, text_dim, selected
        self.scales, self.num_layers, self.heads, self.checkpoint = scales, num_layers, heads, checkpoint
        self.places = PositionEmbedding(dim)
        self.norm_space, self.space = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm_time, self.time = nn.LayerNorm(dim), Attention(dim, heads)
        self.score = nn.Linear(dim, 1)
        self.queries = nn.Parameter(torch.randn(keep, dim))
        self.layers = nn.ModuleList(Layer(dim, heads, text_dim or dim) for _ in range(num_layers))
        self.norm_queries = nn.LayerNorm(dim)
        self.query, self.key = (nn.Linear(dim, dim, bias=False) for _ in range(2))
        load_weights(self, checkpoint)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("text",)

    def refine(self, tokens: Tokens) -> Tensor:
        """Applies attention within frames, then over time; returns [B,N,C]."""
        B, (T, H, W) = tokens.B, tokens.grid.shape
        x = masked_features(tokens, self.queries.dtype) + self.places(tokens)
        x = x.reshape(B * T, H * W, -1)
        y = self.norm_space(x)
        x = (x + self.space(y, y)).reshape(B, T, H * W, -1).transpose(1, 2).flatten(0, 1)  # [B*HW,T,C]
        y = self.norm_time(x)
        real = tokens.mask.reshape(B, T, H * W).transpose(1, 2).flatten(0, 1)
        return (x + self.time(y, y, real)).reshape(B, H * W, T, -1).transpose(1, 2).flatten(1, 2)

    def resample(self, tokens: Tokens, **cues: Any) -> Resampled:
        text = cues["text"]
        check_dim(self.name, tokens.C, self.dim)
        check_text(self.name, text, tokens, self.text_dim or self.dim)
        x = self.refine(tokens)
        score = self.score(x).squeeze(2)
        chosen = Plan.top(score.detach(), constant_count(tokens, self.selected), tokens)
        selected = tokens.apply(chosen)
        x = chosen.move(x * score.sigmoid()[..., None])
        runs, real = self._runs(selected)
        pooled = runs.to(x.dtype) @ x  # [B,K,C]
        queries = self.queries.expand(tokens.B, -1, -1)
        for layer in self.layers:
            queries = layer(queries, pooled, real, text.to(x.dtype))
        heads = fitting_heads(self.dim, self.heads)
        q, k = self.query(self.norm_queries(queries)), self.key(pooled)
        weights = attention_weights(split_heads(q, heads), split_heads(k, heads), real)
        features = (weights.to(x.dtype) @ split_heads(pooled, heads)).transpose(1, 2).flatten(2)
        attention = with_attention_floor(weights.mean(1) @ runs.to(weights.dtype)) * selected.mask[:, None]
        assert chosen.representative is not None
        index = chosen.representative[:, None].expand_as(attention)
        attention = attention.new_zeros(*attention.shape[:2], tokens.N).scatter_add(2, index, attention)
        return attribute_by_attention(tokens, features, attention, constant_count(tokens, self.keep))

    def _runs(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Matrix [B,K,N] that averages the runs of every scale, and which of its rows are valid, bool [B,K]."""
        index = torch.arange(tokens.N, device=tokens.device)
        rows = [F.one_hot(index // scale, -(-tokens.N // scale)).T for scale in self.scales]
        within = torch.cat(rows).float() * tokens.mask[:, None]
        total = within.sum(2)
        return within / total.clamp(min=1)[..., None], total > 0


class Layer(nn.Module):
    """Self-attention of the queries, cross-attention to the video and to the text, and an MLP; pre-norm."""

    def __init__(self, dim: int, heads: int, text_dim: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(4))
        self.own, self.video = Attention(dim, heads), Attention(dim, heads)
        self.text, self.mlp = Attention(dim, heads, text_dim), feed_forward(dim)

    def forward(self, queries: Tensor, x: Tensor, real: Tensor, text: Tensor) -> Tensor:
        """Updates queries [B,M,C] from x [B,K,C] (valid where `real` [B,K]) and text [B,L,D]."""
        own = self.norms[0](queries)
        queries = queries + self.own(own, own)
        queries = queries + self.video(self.norms[1](queries), x, real)
        queries = queries + self.text(self.norms[2](queries), text)
        return queries + self.mlp(self.norms[3](queries))
