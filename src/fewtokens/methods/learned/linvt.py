"""LinVT: the tokens that score highest, at several scales of time, asked by queries that know the text."""

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
    Places,
    attention_weights,
    check_counts,
    check_text,
    counts_of,
    features_of,
    feed_forward,
    fitting_heads,
    resampled,
    seen_by_all,
    split_heads,
)


class LinVt(Resampler):
    """Scores choose the `selected` best tokens of the video, which `keep` queries turn into few.

    LinVT (arXiv 2412.05185). Spatio-temporal visual token refiner: attention within each frame, then over
    time at each place, a linear score, the best `selected` tokens in their order, and their averages over runs of
    each of `scales`, put in a row. Text-conditioned token aggregation: queries look at one another, at these tokens
    and at the text; then softmax(q k^T) V with neither value nor output projection, so that each head of a token is
    a convex combination of what was selected. It differs from the released code, which mixes the samples of a batch
    in its attention and gives its scores no gradient: here nothing mixes samples, and a token is multiplied by the
    sigmoid of its score. The first two attentions have a norm and a residual here and neither there; the layers of
    queries norm before each part and have an MLP here, norm after each part and have none there. So released
    parameters do not fit. Places are added before the first attention. All L rows of the text count.

    Attribution: the last attention, averaged over heads and spread over the runs, is the soft weights; what was not
    selected is dropped. The tokens come in the order of their mean time.

    Args:
        keep: tokens of the whole video, a count.
        dim: channels of the features.
        text_dim: channels of the cue "text" [B,L,D]; None means `dim`.
        selected: tokens that are chosen, 1024 in the paper; all where a video has fewer.
        scales: lengths of the runs that are averaged.
        num_layers: layers of the queries.
        heads: of all attention; the largest number up to this that divides `dim`.
        checkpoint: a safetensors file with trained parameters; None draws them.
    """

    learned = True
    full_grid = True
    paper = "LinVT, arXiv 2412.05185"
    license = "written from the paper"
    cost = "8*N*C*C + 2*N*(H*W+T)*C MACs, then K*C*(C + M) with K selected and averaged tokens"

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
        self.take_budget(keep, units=("count",))
        check_counts(selected=selected, num_layers=num_layers, heads=heads)
        scales = tuple(scales)
        if not scales or any(not isinstance(scale, int) or scale < 1 for scale in scales):
            raise ValueError(f"scales must be lengths of at least 1 such as (1, 2, 4), got {scales!r}")
        self.dim, self.text_dim, self.selected = dim, text_dim, selected
        self.scales, self.num_layers, self.heads, self.checkpoint = scales, num_layers, heads, checkpoint
        self.places = Places(dim)
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
        """Attention within frames and over time, [B,N,C]."""
        B, (T, H, W) = tokens.B, tokens.grid.shape
        x = features_of(tokens.require_full_grid(self.name), self.queries.dtype) + self.places(tokens)
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
        chosen = Plan.top(score.detach(), counts_of(tokens, self.selected), tokens)
        kept = tokens.apply(chosen)
        x = chosen.move(x * score.sigmoid()[..., None])
        runs, real = self._runs(kept)
        pooled = runs.to(x.dtype) @ x  # [B,K,C]
        queries = self.queries.expand(tokens.B, -1, -1)
        for layer in self.layers:
            queries = layer(queries, pooled, real, text.to(x.dtype))
        heads = fitting_heads(self.dim, self.heads)
        q, k = self.query(self.norm_queries(queries)), self.key(pooled)
        look = attention_weights(split_heads(q, heads), split_heads(k, heads), real)
        made = (look.to(x.dtype) @ split_heads(pooled, heads)).transpose(1, 2).flatten(2)
        attention = seen_by_all(look.mean(1) @ runs.to(look.dtype)) * kept.mask[:, None]
        assert chosen.representative is not None
        index = chosen.representative[:, None].expand_as(attention)
        attention = attention.new_zeros(*attention.shape[:2], tokens.N).scatter_add(2, index, attention)
        return resampled(tokens, made, attention, counts_of(tokens, self.keep))

    def _runs(self, kept: Tokens) -> tuple[Tensor, Tensor]:
        """The averages over runs of each scale as a matrix [B,K,N], and which of them are real, bool [B,K]."""
        place = torch.arange(kept.N, device=kept.device)
        rows = [F.one_hot(place // scale, -(-kept.N // scale)).T for scale in self.scales]
        within = torch.cat(rows).float() * kept.mask[:, None]
        total = within.sum(2)
        return within / total.clamp(min=1)[..., None], total > 0


class Layer(nn.Module):
    """Queries look at one another, at the video and at the text, then go through an MLP; LayerNorm before each."""

    def __init__(self, dim: int, heads: int, text_dim: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(4))
        self.own, self.video = Attention(dim, heads), Attention(dim, heads)
        self.text, self.mlp = Attention(dim, heads, text_dim), feed_forward(dim)

    def forward(self, queries: Tensor, x: Tensor, real: Tensor, text: Tensor) -> Tensor:
        """[B,M,C] to [B,M,C], looking at x [B,K,C] where real [B,K], and at text [B,L,D]."""
        own = self.norms[0](queries)
        queries = queries + self.own(own, own)
        queries = queries + self.video(self.norms[1](queries), x, real)
        queries = queries + self.text(self.norms[2](queries), text)
        return queries + self.mlp(self.norms[3](queries))
