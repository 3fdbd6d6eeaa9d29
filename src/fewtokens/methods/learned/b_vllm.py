"""B-VLLM: frames mixed by queries that know the question, and a few tokens of each, within one budget."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewtokens.core.method import Resampled, Resampler, load_weights
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.bipartite import merge_to
from fewtokens.methods.ops.leaders import first_similar
from fewtokens.methods.ops.per_frame import check_dim
from fewtokens.methods.ops.resample import (
    QueryLayer,
    check_counts,
    check_text,
    masked_features,
    to_float32,
    with_attention_floor,
)

# As published: the temperature of selectors, their cosine from which they are merged ((cos + 1) / 2 above 0.75), and
# the number of frames whose tokens are within the budget: 576 tokens, 32 for each.
_TAU, _SAME, _FRAMES = 0.5, 0.5, 18


class BVllm(Resampler):
    """Mixes the frames by a few selectors that depend on the question, and reduces each mixture to a few tokens.

    B-VLLM (arXiv 2412.09919). Queries that attend to the text and to the mean of each frame give selectors: softmax(q
    f^T / sqrt(C) / 0.5) over the frames f. A selector that is similar to an earlier one, with a cosine of at least 0.5,
    is merged with it (averaged). Each of the k that remain mixes the frames to one, from which `tokens` further
    queries read, which attend to the text too. A mixture has at most floor(18 / k * tokens) of them; if there are more,
    the most similar ones are merged. With the published 16 selectors, that is never the case.

    In training, Gumbel noise is added to the scores of the frames. The published code also adds it to those of its
    answers, which are therefore random; here they are deterministic. Other differences: one width throughout, attention
    without biases, the text is the cue `text` in place of the words of a BERT, and is not changed by the layers.

    Attribution: the product of a selector and the attention of a query, averaged over the layers; M x N weights for M
    tokens of N cells. Tokens are sorted by the mean time of their mixture.

    Args:
        selectors: number of selectors, before similar ones are merged. Default: 16, as published.
        tokens: number of tokens of a mixture. Default: 32, as published.
        dim: channels of the features.
        text_dim: channels of the cue "text" [B,L,D]; None for `dim`.
        num_layers: number of layers of both networks (12 with cross-attention in every second one there).
        heads: maximum number of attention heads; the largest number up to this that divides `dim` is used.
        checkpoint: path of a safetensors file with trained parameters; None initializes them randomly.
    """

    learned = True
    full_grid = True
    paper = "B-VLLM: A Vision Large Language Model with Balanced Spatio-Temporal Tokens, arXiv 2412.09919"
    license = "written from the paper and a description of its code, Apache-2.0"
    cost = "N*K*C MACs for K selectors; per layer 2*K*n*C*C + 2*K*m*n*C for K mixtures of n cells and m tokens of each"

    def __init__(
        self,
        selectors: int = 16,
        *,
        tokens: int = 32,
        dim: int = 384,
        text_dim: int | None = None,
        num_layers: int = 2,
        heads: int = 8,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        check_counts(selectors=selectors, tokens=tokens, num_layers=num_layers, heads=heads)
        self.selectors, self.tokens, self.dim, self.text_dim = selectors, tokens, dim, text_dim
        self.num_layers, self.heads, self.checkpoint = num_layers, heads, checkpoint
        self.to_text, self.seen = nn.Linear(text_dim or dim, dim), nn.LayerNorm(dim)
        self.time_queries = nn.Parameter(0.02 * torch.randn(selectors, dim))
        self.space_queries = nn.Parameter(0.02 * torch.randn(tokens, dim))
        self.time, self.space = (nn.ModuleList(QueryLayer(dim, heads) for _ in range(num_layers)) for _ in range(2))
        self.score, self.out = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        load_weights(self, checkpoint)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("text",)

    def select(self, tokens: Tokens, text: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the weight of each frame in each mixture, and how many there are.

        Args:
            tokens: one for each cell, [B,T*H*W,C].
            text: [B,L,D].

        Returns:
            [B,K,T], ordered by mean time, zero in the rows of merged selectors, which are last; and int64 [B].
        """
        T = tokens.grid.T
        x = masked_features(tokens, self.score.weight.dtype).unflatten(1, (T, -1)).mean(2)
        real = tokens.mask.unflatten(1, (T, -1)).any(2)
        frames, text = self.seen(x), self.to_text(text.to(x.dtype))
        queries = self.time_queries.expand(tokens.B, -1, -1)
        for layer in self.time:
            queries, _ = layer(queries, frames, real, text)
        logits = to_float32(self.score(queries)) @ to_float32(frames).transpose(1, 2) / math.sqrt(self.dim)
        if self.training:
            logits = logits - torch.empty_like(logits).exponential_().log()
        weights = (logits / _TAU).masked_fill(~real[:, None], -torch.inf).softmax(2)
        with torch.no_grad():
            unit = F.normalize(weights, dim=2)
            leader = first_similar(unit, torch.ones_like(unit[..., 0], dtype=torch.bool), _SAME)
        members = F.one_hot(leader, self.selectors).transpose(1, 2).to(weights.dtype)
        mixed = members @ weights / members.sum(2, keepdim=True).clamp(min=1)
        used = members.any(2)
        with torch.no_grad():
            center = (mixed @ torch.arange(T, device=x.device, dtype=mixed.dtype)).masked_fill(~used, torch.inf)
            order = center.argsort(dim=1, stable=True)
        return mixed.gather(1, order[..., None].expand_as(mixed)), used.sum(1)

    def resample(self, tokens: Tokens, **cues: Any) -> Resampled:
        check_dim(self.name, tokens.C, self.dim)
        text = cues["text"]
        check_text(self.name, text, tokens, self.text_dim or self.dim)
        B, T, n = tokens.B, tokens.grid.T, tokens.grid.cells_per_frame
        weights, count = self.select(tokens, text)
        K = int(count.max())
        weights = weights[:, :K]
        x = masked_features(tokens, self.score.weight.dtype)
        mixed = (weights.to(x.dtype) @ x.reshape(B, T, -1)).reshape(B * K, n, -1)
        rows = self.to_text(text.to(x.dtype)).repeat_interleave(K, 0)
        queries = self.space_queries.expand(B * K, -1, -1)
        seen, every = self.seen(mixed), torch.ones(B * K, n, dtype=torch.bool, device=x.device)
        attention = []
        for layer in self.space:
            queries, mean = layer(queries, seen, every, rows)
            attention.append(mean)
        read = with_attention_floor(torch.stack(attention).mean(0))
        mixture = torch.arange(K, device=x.device) < count[:, None]
        most = torch.tensor([limit(k, self.tokens) for k in count.tolist()], device=x.device)
        each = most.clamp(max=self.tokens)[:, None].expand_as(mixture)
        queries, read = self._merge(queries, read, each.flatten())
        m = queries.shape[1]
        kept = mixture[..., None] & (torch.arange(m, device=x.device) < each[..., None])
        maps = read.reshape(B, K, m, 1, n) * weights[:, :, None, :, None]
        maps = maps / maps.sum((3, 4), keepdim=True).clamp(min=1e-12) * kept[..., None, None]
        slots = torch.full_like(count, K * m)
        return Resampled(self.out(queries).reshape(B, K * m, -1), maps.reshape(B, K * m, -1), slots, kept.flatten(1))

    def _merge(self, queries: Tensor, read: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Merges the most similar rows of queries [R,m,C], and of their attention [R,m,n], to `count` [R]."""
        if int(count.min()) >= queries.shape[1]:
            return queries, read
        plan = merge_to(Tokens.from_cells(queries.detach().float()[:, None, None]), count)
        return plan.move(queries), plan.move(read)


def limit(mixtures: int, tokens: int) -> int:
    """Returns the maximum number of tokens of each of some mixtures, so that all are within the budget."""
    return max(1, _FRAMES * tokens // mixtures)
