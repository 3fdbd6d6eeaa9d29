"""PruMerge: the tokens of each frame with exceptional attention, each mixed with its neighbors, and one of the rest."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.attention_rule import AttentionRule
from fewtokens.core.method import Method
from fewtokens.core.plan import Plan, take_rows
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.segments import split_over_frames


class PruMerge(Method):
    """Keeps tokens with exceptional attention, adds those with similar keys to them, and merges the rest into one.

    LLaVA-PruMerge (arXiv 2403.15388). In each frame the tokens whose attention is above Q3 + 1.5 (Q3 - Q1), where Q1
    and Q3 are quartiles over the frame, are kept; at least the most attended one. To each, its `neighbors` tokens with
    the most similar keys are added, weighted by their attention. One more token is the sum of all that are not kept,
    weighted by attention; it stands for their cells. With `keep` the most attended tokens are kept instead, as many as
    the budget has besides the last one. With plus=True (PruMerge+), every s-th token of the frame is also kept, where
    s = floor(1 / share) // 3 and share is the fraction of tokens with exceptional attention.

    The published code returns the sums, whose norm grows; with normalize=True (the default) they are divided by their
    weights. It counts exceptional tokens over a batch, and orders tokens by attention; here by position. A frame whose
    budget is all its tokens stays unchanged; with a budget of one, only the most attended token is kept.

    Args:
        keep: budget, a fraction of the cells (float), a count (int) or "8/frame", split evenly over the frames.
            Default: None, the number of tokens depends on the attention, as published.
        plus: whether to also keep tokens at a regular distance; only without `keep`.
        neighbors: number of tokens added to a kept one. Default: 32, as published.
        normalize: True (default) for means, False for the published sums.
        attention: which attention of the tower of a language model, such as "received" or "class@-2", see
            `AttentionRule`. Default: that of the class token in the last layer with heads joined, as published, or the
            attention received if there is none.
    """

    paper = "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models, arXiv 2403.15388"
    license = "written from the description; reference code Apache-2.0"
    cost = "O(K n (C + D)) per frame of n cells with K tokens kept"
    full_grid = True
    published_attention = AttentionRule(layer="last", heads="joined")

    def __init__(
        self,
        keep: float | int | str | None = None,
        *,
        plus: bool = False,
        neighbors: int = 32,
        normalize: bool = True,
        attention: str | None = None,
    ) -> None:
        super().__init__()
        self.keep = keep
        if keep is not None:
            self.set_budget(keep)
        self.attention, self.attention_rule = attention, self.published_attention.override(attention)
        if plus and keep is not None:
            raise ValueError("prumerge: plus has no effect with keep; give only one of them")
        if neighbors < 0:
            raise ValueError(f"prumerge: neighbors must be at least 0, got {neighbors}")
        self.plus, self.neighbors, self.normalize = bool(plus), neighbors, bool(normalize)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("attention", "keys")

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        n = tokens.grid.cells_per_frame
        with torch.no_grad():
            attention = cues["attention"].float().reshape(-1, n)
            real = tokens.mask.reshape(-1, n)
            kept, has_rest = self._select(tokens, attention, real)
            weights, row = self._weights(kept, attention, cues["keys"].float().reshape(len(kept), n, -1))
            rest = attention.masked_fill(kept | ~real, 0)
            # Tokens of a frame: those kept, then the one of the rest.
            is_token = torch.cat([kept, has_rest[:, None]], 1)
            slot = (is_token.reshape(tokens.B, -1).cumsum(1) - 1).reshape(-1, n + 1)
            dest = torch.where(kept, slot[:, :n], torch.where(has_rest, slot[:, n], -1)[:, None])
            dest = dest.masked_fill(~real, -1).reshape(tokens.B, -1)
            count = is_token.reshape(tokens.B, -1).sum(1)
            M = int(count.max())
            slot = slot.masked_fill(~is_token, M)
        x = tokens.features if tokens.features.dtype == torch.float64 else tokens.features.float()
        x = x.reshape(-1, n, tokens.C)
        mixed = self._sum(weights.to(x.dtype), x)
        merged = self._sum(rest[:, None].to(x.dtype), x)
        # Padding and frames without a token of the rest go to an extra row.
        place = torch.where(take_rows(kept[..., None], row)[..., 0], slot.gather(1, row), M)
        place = torch.cat([place, slot[:, n:]], 1).reshape(tokens.B, -1)
        rows = torch.cat([mixed, merged], 1).reshape(tokens.B, -1, tokens.C).to(tokens.features.dtype)
        index = place[..., None].expand_as(rows)
        features = rows.new_zeros(tokens.B, M + 1, tokens.C).scatter(1, index, rows)[:, :M]
        reduced = tokens.replace(features=tokens.features[..., :0]).apply(Plan(count, M, dest))
        return reduced.replace(features=features.masked_fill(~reduced.mask[..., None], 0)).sort_by_position()

    def _select(self, tokens: Tokens, attention: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens to keep, bool [B*T,n], and whether a frame has a token of the rest, bool [B*T]."""
        n = attention.shape[1]
        rank = attention.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        if self.budget is not None:
            budget = split_over_frames(tokens, self.counts(tokens)).diff(dim=1).flatten()
            has_rest = (budget > 1) & (budget < n)
            return (rank < (budget - has_rest.long())[:, None]) & real, has_rest
        low, high = attention.quantile(torch.tensor([0.25, 0.75], device=attention.device), dim=1)
        exceptional = (attention > (high + 1.5 * (high - low))[:, None]) | (rank == 0)
        kept = exceptional & real
        if self.plus:
            stride = (n // exceptional.sum(1)).div(3, rounding_mode="floor").clamp(min=1)
            kept |= (torch.arange(n, device=kept.device) % stride[:, None] == 0) & real
        return kept, real[:, 0] & (kept.sum(1) < n)

    def _weights(self, kept: Tensor, attention: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The weight of each token of a frame in each kept one, [F,K,n], and the cells of these, int64 [F,K]."""
        n = kept.shape[1]
        K = max(1, int(kept.sum(1).max()))
        row = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, :K]
        keys = F.normalize(keys, dim=2)
        own = F.one_hot(row, n).bool()
        similar = (take_rows(keys, row) @ keys.transpose(1, 2)).masked_fill(own, -torch.inf)
        near = similar.topk(min(self.neighbors, n - 1), dim=2).indices
        each = attention[:, None].expand_as(similar)
        weights = torch.zeros_like(each).scatter(2, near, each.gather(2, near))
        # A frame that keeps all its tokens stays unchanged.
        weights = weights.masked_fill(kept.all(1)[:, None, None], 0)
        return weights.masked_fill(own, 1), row

    def _sum(self, weights: Tensor, x: Tensor) -> Tensor:
        """The weighted sums or means of x [F,n,C], [F,K,C]."""
        if self.normalize:
            weights = weights / weights.sum(2, keepdim=True).clamp(min=1e-12)
        return weights @ x
