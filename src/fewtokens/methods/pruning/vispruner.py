"""VisPruner: half of the tokens by attention, half by diversity."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan, group_count
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.groups import allocate, split_groups


class VisPruner(Reducer):
    """Keeps the most attended tokens of each frame, and of the others those that remain when duplicates are removed.

    VisPruner (arXiv 2412.01818v2, "Beyond Text-Visual Attention"). `important * k` of the k tokens of a frame, rounded
    down, are those with the most attention. The other tokens, most attended first, are dealt alternately into two sets;
    the `per_round` tokens of the first set that are most similar to one of the second are dropped. The rest of the
    first set, most similar first, precedes the second, and both are dealt again, until only the diverse part of the
    budget is left; the last round drops fewer. `per_round` is part of the definition: another value keeps other tokens.
    It is published for images; the budget of a video is split over its frames in proportion to their tokens.

    Args:
        keep: budget, a fraction of the cells (float), a count (int) or "8/frame". Default: 0.25.
        important: fraction of the budget for the most attended tokens, in [0, 1]. Default: 0.5, as published.
        per_round: number of tokens that a round drops, at least 1. Default: 8, as published.
    """

    paper = (
        "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs (VisPruner), ICCV 25"
    )
    license = "written from the description; reference code Apache-2.0"
    cost = "O(n^2 C) per frame of n cells, and O(n^3 / per_round) comparisons without products"

    def __init__(self, keep: float | int | str = 0.25, *, important: float = 0.5, per_round: int = 8) -> None:
        super().__init__()
        self.set_budget(keep)
        if not 0 <= important <= 1:
            raise ValueError(f"important must be in [0, 1] (a fraction of the budget), got {important}")
        if per_round < 1:
            raise ValueError(f"per_round must be at least 1, got {per_round}")
        self.important, self.per_round = float(important), per_round

    @property
    def needs(self) -> tuple[str, ...]:
        return ("attention",)

    def plan(self, tokens: Tokens, *, attention: Tensor) -> Plan:
        frame, frames = tokens.frame.masked_fill(~tokens.mask, -1), tokens.grid.T
        budget = allocate(self.counts(tokens), group_count(frame, frames)).flatten()  # of each of R frames
        with torch.no_grad():
            parts, slot = split_groups(tokens, frame, frames)
            scores = attention.new_zeros(tokens.B, parts.B // tokens.B * parts.N).float()
            scores = scores.scatter_add(1, slot, attention.float().masked_fill(frame < 0, 0)).reshape(parts.mask.shape)
            kept = self._select(parts.features, scores, parts.mask, budget)
        return Plan.keep(kept.reshape(tokens.B, -1).gather(1, slot) & (frame >= 0), self.max_slots(tokens))

    def _select(self, features: Tensor, attention: Tensor, mask: Tensor, budget: Tensor) -> Tensor:
        """The `budget` [R] tokens to keep of frames [R,n,C], bool [R,n]."""
        order = attention.masked_fill(~mask, -torch.inf).argsort(dim=1, descending=True, stable=True)
        num_important = (budget * self.important + 1e-6).long()[:, None]
        place = torch.arange(order.shape[1], device=order.device)
        kept = torch.zeros_like(mask).scatter(1, order, place < num_important)
        x = F.normalize(features.float(), dim=2)
        similar = x @ x.transpose(1, 2)
        # The remaining tokens in the order in which they are dealt; their number is `size`.
        order = order.gather(1, (place + num_important).clamp(max=len(place) - 1))
        size, target = mask.sum(1) - num_important[:, 0], budget - num_important[:, 0]
        frame = torch.arange(len(order), device=order.device)[:, None, None]
        while bool((size > target).any()):
            first, second = order[:, ::2], order[:, 1::2]
            real = place < size[:, None]
            pairs = similar[frame, first[:, :, None], second[:, None]].masked_fill(~real[:, None, 1::2], -2)
            nearest = F.pad(pairs, (0, 1), value=-2).amax(2).masked_fill(~real[:, ::2], -3)
            by_similarity = nearest.argsort(dim=1, descending=True, stable=True)
            drop = (size - target).clamp(min=0, max=self.per_round).minimum(real[:, ::2].sum(1))
            stays = real[:, ::2] & (place[: first.shape[1]] >= drop[:, None])
            dealt = torch.cat([first.gather(1, by_similarity), second], 1)
            valid = torch.cat([stays, real[:, 1::2]], 1)
            compact = (~valid).to(torch.uint8).argsort(dim=1, stable=True)
            # Frames that have reached their target are not dealt again.
            order = torch.where((drop > 0)[:, None], dealt.gather(1, compact), order)
            size = size - drop
        order = order.masked_fill(place >= size[:, None], len(place))
        return kept | F.pad(torch.zeros_like(mask), (0, 1)).scatter(1, order, True)[:, :-1]
