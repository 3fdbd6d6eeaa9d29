"""LLaVA-Scissor: connected components of similar tokens, first in each frame, then over the video."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.method import Method
from fewtokens.core.plan import Plan, take_rows
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.bipartite import best_match
from fewtokens.methods.ops.components import cosine_components
from fewtokens.methods.ops.groups import plan_from_groups, split_groups
from fewtokens.methods.ops.search import reduce_to_budget

_ROUNDING = 1e-6


class Scissor(Method):
    """Merges connected components of similar tokens: per frame, then per video.

    LLaVA-Scissor (arXiv 2506.21862). Two tokens of a frame are connected if their cosine exceeds tau; each connected
    component is averaged. The averages of all frames are connected and averaged in the same way, each with weight one
    regardless of the number of tokens it stands for. Finally every original token joins its most similar
    representative, and the output is the mean of that representative and all its tokens.

    Components are exact, by label propagation on tensors; the published code samples nodes, which is exact up to about
    3,400 tokens, and visits them in a Python loop. A token stays with the representative of its component
    unless another is nearer by more than the rounding error. Representatives without tokens are excluded; the published
    code returns them unchanged. Tokens are ordered by mean position; in the published code, representatives are ordered
    by the member of their component with the most neighbors.

    Args:
        tau: cosine above which tokens are connected, in [-1, 1]. Default: 0.9, as in the published examples.
        keep: budget in place of tau, a fraction of the cells (float), a count (int) or "8/frame": a search finds the
            threshold that leaves the fewest tokens not below the budget, and the most similar pairs are merged to the
            exact count.
    """

    paper = "LLaVA-Scissor: Token Compression with Semantic Connected Components, arXiv 2506.21862"
    license = "written from the description; the reference code is CC BY-NC 4.0"
    cost = "O(T n^2 C + M^2 C) per round of label propagation, in blocks of bounded memory; with keep, nine times that"

    def __init__(self, tau: float | None = None, *, keep: float | int | str | None = None) -> None:
        super().__init__()
        self.set_budget(keep, tau=tau)
        if tau is not None and not -1 <= tau <= 1:
            raise ValueError(f"tau must be a cosine in [-1, 1], got {tau}")
        self.tau = tau

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        if self.budget is None:
            tau = torch.full((tokens.B,), 0.9 if self.tau is None else self.tau, device=tokens.device)
            return _reduce(tokens, tau)
        # A threshold of 1 connects nothing.
        return reduce_to_budget(lambda tau: _reduce(tokens, tau), self.counts(tokens), -1.0, 1.0)


def _reduce(tokens: Tokens, tau: Tensor) -> Tokens:
    """Both passes and the final assignment, with a separate tau [B] for each video."""
    with torch.no_grad():
        x = tokens.features.float()
        float_tokens = tokens.replace(features=x)
        first_plan = _merge_within_frames(float_tokens, tau)
        first = float_tokens.apply(first_plan)
        second = cosine_components(first.features, first.mask, tau)
        second_plan = Plan.group(second, first, first.N)
        representatives = second_plan.move(first.features)
        real = torch.arange(second_plan.num_slots, device=x.device) < second_plan.count[:, None]
        unit, rows = F.normalize(representatives, dim=2), F.normalize(x, dim=2)
        best, nearest = best_match(rows, unit, real)
        # A token's own representative, unless another is nearer by more than the rounding error.
        own = first_plan.then(second_plan).dest
        assert own is not None
        own = own.clamp(min=0)
        similarity = (rows * take_rows(unit, own)).sum(2)
        nearest = torch.where(similarity >= best - _ROUNDING, own, nearest)
        plan = Plan.group(nearest, tokens, second_plan.num_slots)
    out = tokens.apply(plan)
    # The mean of the representative and its tokens, each with weight one.
    assert plan.dest is not None
    ones = torch.ones_like(tokens.sizes)
    count = plan.parts(ones)[1][..., None]
    mean = plan.move(tokens.features.float())
    center = plan.move(take_rows(representatives, nearest))
    features = (mean * count + center) / (count + 1)
    return replace(out, features=features.masked_fill(~out.mask[..., None], 0).to(tokens.features.dtype))


def _merge_within_frames(tokens: Tokens, tau: Tensor) -> Plan:
    """Merges the components of each frame."""
    frame = tokens.frame.masked_fill(~tokens.mask, -1)
    parts, slot = split_groups(tokens, frame, tokens.grid.T)
    label = cosine_components(parts.features, parts.mask, tau.repeat_interleave(tokens.grid.T))
    return plan_from_groups(label.masked_fill(~parts.mask, -1), slot, frame, tokens)
