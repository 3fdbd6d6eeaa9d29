"""LLaVA-Scissor: connected components of like tokens, first in each frame, then over the video."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.method import Method
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.bipartite import best_match
from fewtokens.methods.ops.components import by_cosine
from fewtokens.methods.ops.groups import grouped, regroup
from fewtokens.methods.ops.search import to_budget

_ROUNDING = 1e-6


class Scissor(Method):
    """Tokens that hang together by likeness become one: in each frame, then over the whole video.

    LLaVA-Scissor (arXiv 2506.21862). Two tokens of a frame are joined if their cosine exceeds tau; each connected
    component is averaged; the averages of all frames are joined and averaged in the same way, each counting once
    whatever it stands for; at last every original token goes to its most similar representative, and comes out as the
    mean of that representative and all that went to it.

    Components are exact, by running labels along the edges on tensors; the published code samples nodes, which is exact
    up to about 3,400 tokens, and follows them one by one in Python. A token stays with the representative of its own
    component unless another one is nearer by more than rounding. Representatives that nothing goes to are left out;
    the published code lets them out as they are. Tokens come out by mean place; there, representatives by their
    component's member with the most neighbors.

    Args:
        tau: likeness that joins; 0.9 in the published examples.
        keep: a budget instead of tau: the highest tau is sought that leaves at least so many, and the
            most similar pairs of what is left are merged down to the exact count.
    """

    paper = "LLaVA-Scissor: Token Compression with Semantic Connected Components, arXiv 2506.21862"
    license = "written from the description; the reference code is CC BY-NC 4.0"
    cost = "O(T n^2 C + M^2 C) for each round of labels, in blocks of bounded memory; with keep, nine times that"

    def __init__(self, tau: float | None = None, *, keep: float | int | str | None = None) -> None:
        super().__init__()
        self.take_budget(keep, tau=tau)
        if tau is not None and not -1 <= tau <= 1:
            raise ValueError(f"tau is a cosine, in [-1, 1], got {tau}")
        self.tau = tau

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        if self.budget is None:
            tau = torch.full((tokens.B,), 0.9 if self.tau is None else self.tau, device=tokens.device)
            return _reduce(tokens, tau)
        # A threshold of 1 joins nothing.
        return to_budget(lambda tau: _reduce(tokens, tau), self.counts(tokens), -1.0, 1.0)


def _reduce(tokens: Tokens, tau: Tensor) -> Tokens:
    """Both passes and the last assignment, for a tau [B] of each video."""
    with torch.no_grad():
        x = tokens.features.float()
        wide = tokens.replace(features=x)
        to_first = _within_frames(wide, tau)
        first = wide.apply(to_first)
        second = by_cosine(first.features, first.mask, tau)
        to_second = Plan.group(second, first, first.N)
        representatives = to_second.move(first.features)
        real = torch.arange(to_second.num_slots, device=x.device) < to_second.count[:, None]
        unit, rows = F.normalize(representatives, dim=2), F.normalize(x, dim=2)
        best, nearest = best_match(rows, unit, real)
        # Its own representative, unless another one is nearer by more than rounding.
        own = to_first.then(to_second).dest
        assert own is not None
        own = own.clamp(min=0)
        likeness = (rows * unit.gather(1, own[..., None].expand(-1, -1, unit.shape[2]))).sum(2)
        nearest = torch.where(likeness >= best - _ROUNDING, own, nearest)
        plan = Plan.group(nearest, tokens, to_second.num_slots)
    out = tokens.apply(plan)
    # The mean of the representative and of what went to it, each counting once.
    assert plan.dest is not None
    ones = torch.ones_like(tokens.sizes)
    count = plan.parts(ones)[1][..., None]
    mean = plan.move(tokens.features.float())
    centre = plan.move(representatives.gather(1, nearest[..., None].expand(-1, -1, x.shape[2])))
    features = (mean * count + centre) / (count + 1)
    return replace(out, features=features.masked_fill(~out.mask[..., None], 0).to(tokens.features.dtype))


def _within_frames(tokens: Tokens, tau: Tensor) -> Plan:
    """Merges the components of each frame."""
    frame = tokens.frame.masked_fill(~tokens.mask, -1)
    parts, slot = grouped(tokens, frame, tokens.grid.T)
    label = by_cosine(parts.features, parts.mask, tau.repeat_interleave(tokens.grid.T))
    return regroup(label.masked_fill(~parts.mask, -1), slot, frame, tokens)
