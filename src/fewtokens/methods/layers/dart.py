"""DART: keeps the video tokens that duplicate a few pivots least."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.budget import Budget
from fewtokens.core.layer_method import (
    LayerDecision,
    LayerMethod,
    LayerState,
    PrunePoint,
    check_layer,
    counts,
    highest,
)
from fewtokens.core.plan import take_rows


class Dart(LayerMethod):
    """Before one layer, keeps a few pivots and, for each of them, the video tokens that are least similar to it.

    DART (arXiv 2502.11494), duplication-aware; no attention is computed. Pivots are the video tokens and the question
    tokens with the largest L1 norm of the keys of layer `layer` - 1. In turn, the video pivots first and each kind with
    falling norm, a pivot keeps an equal part of the budget: of the tokens that are left, those with the lowest cosine
    to it. Question pivots do not count. Kept tokens keep their positions.

    With question pivots alone and no question, the tokens with the largest norm are kept.

    Differences from the published code: it visits the pivots in the order of a Python set, and rounds the part of
    each pivot down, so that it keeps up to seven tokens fewer than its budget; here the first pivots get one more.

    Args:
        keep: fraction (float in (0, 1]) or number (int) of a prompt's video tokens. Default: 0.222, as published.
        layer: first layer with fewer tokens, at least 1. Default: 2, as in the paper (5 in a later port).
        pivots: numbers of video and question pivots, at least one in all. Default: (4, 4), as published.
        final_norm: whether similarity is that after the norm before the model's head (True, the published code) or
            that of the hidden states (False).
    """

    paper = "Stop Looking for Important Tokens in MLLMs: Duplication Matters More (DART), arXiv 2502.11494"
    license = "written from a description; no code of the authors was read"
    cost = "O(pivots * N C), and the keys of one layer"

    def __init__(
        self,
        keep: float | int = 0.222,
        *,
        layer: int = 2,
        pivots: Sequence[int] = (4, 4),
        final_norm: bool = True,
    ) -> None:
        self.keep, self.layer = Budget.parse(keep, units=("fraction", "count")).value, check_layer(layer, "dart")
        if len(pivots) != 2 or any(not isinstance(number, int) or number < 0 for number in pivots) or not sum(pivots):
            raise ValueError(f"dart: pivots must be two numbers of tokens such as (4, 4), got {pivots!r}")
        self.pivots, self.final_norm = tuple(pivots), bool(final_norm)

    def prune_points(self, depth: int) -> list[PrunePoint]:
        return [PrunePoint(self.layer, key_layer=self.layer - 1)]

    def choose(self, state: LayerState, index: int) -> LayerDecision:
        assert state.keys is not None
        count = counts(state, self.keep)
        norm = state.keys.float().abs().sum(2)
        hidden = state.final_norm(state.hidden) if self.final_norm else state.hidden
        unit = F.normalize(hidden.float(), dim=2)
        pivot, exists = _largest(norm, state.video, count.clamp(max=self.pivots[0]), self.pivots[0])
        kept = torch.zeros_like(state.video).scatter_add(1, pivot, exists) & state.video
        text, text_exists = _largest(norm, state.question, torch.full_like(count, self.pivots[1]), self.pivots[1])
        pivot, exists = torch.cat([pivot, text], 1), torch.cat([exists, text_exists], 1)
        rest, number = count - kept.sum(1), exists.sum(1).clamp(min=1)
        similar = unit @ take_rows(unit, pivot).transpose(1, 2)  # [B,M,pivots]
        turn = exists.cumsum(1) - 1
        part = (rest[:, None] // number[:, None] + (turn < rest[:, None] % number[:, None])) * exists
        for place in range(pivot.shape[1]):
            kept = kept | highest(-similar[..., place], state.video & ~kept, part[:, place])
        # Without any pivot, the tokens that would be pivots themselves.
        return LayerDecision(kept | highest(norm, state.video & ~kept, count - kept.sum(1)))


def _largest(norm: Tensor, allowed: Tensor, count: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The `count` [B] columns with the largest norm, falling: int64 [B,m], and whether each exists, bool [B,m]."""
    order = norm.masked_fill(~allowed, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :most]
    place = torch.arange(order.shape[1], device=norm.device)
    return order, place < count.minimum(allowed.sum(1))[:, None]
