"""LLaVA-Scissor: connected components of like tokens, first in each frame, then over the video."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.grid import Grid
from fewtokens.method import Method, check_keep, planned_count
from fewtokens.plan import Plan
from fewtokens.reduce.bipartite import best_match
from fewtokens.reduce.components import by_cosine
from fewtokens.reduce.search import to_budget
from fewtokens.tokens import Tokens

_ROUNDING = 1e-5


class Scissor(Method):
    """Tokens that hang together by likeness become one: in each frame, then over the whole video.

    LLaVA-Scissor (arXiv 2506.21862). Two tokens of a frame are joined if their cosine exceeds tau; each connected
    component is averaged; the averages of all frames are joined in the same way; at last every original token goes to
    its most similar representative, and comes out as the mean of that representative and all that went to it.

    Components are exact, by running labels along the edges on tensors; the published code samples nodes and follows
    them one by one in Python. Representatives that nothing goes to are left out.

    Args:
        tau: likeness that joins; 0.9 in the published examples.
        keep: a budget instead of tau: the highest tau is sought that leaves at least so many, and the
            most similar pairs of what is left are merged down to the exact count.
    """

    paper = "LLaVA-Scissor: Token Compression with Semantic Connected Components, arXiv 2506.21862"
    licence = "written from the description; the reference code is CC BY-NC 4.0"
    cost = "O(T n^2 C + M^2 C) for each round of labels, in blocks of bounded memory; with keep, nine times that"
    instead_of_keep = ("tau",)
    partition = True
    budget = False

    def __init__(self, tau: float | None = None, *, keep: float | int | None = None) -> None:
        super().__init__()
        if tau is not None and keep is not None:
            raise ValueError("scissor takes tau= or keep=, not both")
        if tau is not None and not -1 <= tau <= 1:
            raise ValueError(f"tau is a cosine, in [-1, 1], got {tau}")
        self.keep = None if keep is None else check_keep(keep)
        self.tau = tau
        self.budget = keep is not None

    def planned_count(self, grid: Grid) -> int | None:
        return None if self.keep is None else planned_count(grid, self.keep)

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        if self.keep is None:
            tau = torch.full((tokens.B,), 0.9 if self.tau is None else self.tau, device=tokens.device)
            return _reduce(tokens, tau)
        # A threshold of 1 joins nothing.
        return to_budget(lambda tau: _reduce(tokens, tau), self.counts(tokens), -1.0, 1.0)


def _reduce(tokens: Tokens, tau: Tensor) -> Tokens:
    """Both passes and the last assignment, for a tau [B] of each video."""
    with torch.no_grad():
        x = tokens.features.float()
        label = _within_frames(x, tokens, tau)
        to_first = Plan.group(label, tokens, tokens.N)
        first = tokens.replace(features=x).apply(to_first)
        second = by_cosine(first.features, first.mask, tau)
        to_second = Plan.group(second, first, first.N)
        representatives = first.apply(to_second)
        unit, rows = F.normalize(representatives.features, dim=2), F.normalize(x, dim=2)
        best, nearest = best_match(rows, unit, representatives.mask)
        # Its own representative, unless another one is nearer by more than rounding.
        own = to_first.then(to_second).dest
        assert own is not None
        own = own.clamp(min=0)
        likeness = (rows * unit.gather(1, own[..., None].expand(-1, -1, unit.shape[2]))).sum(2)
        nearest = torch.where(likeness >= best - _ROUNDING, own, nearest)
        plan = Plan.group(nearest, tokens, representatives.N)
    out = tokens.apply(plan)
    # The mean of the representative and of what went to it, each counting once.
    assert plan.dest is not None
    ones = torch.ones_like(tokens.sizes)
    count = plan.shares(ones)[1][..., None]
    mean = plan.move(tokens.features.float())
    centre = plan.move(representatives.features.gather(1, nearest[..., None].expand(-1, -1, x.shape[2])))
    features = (mean * count + centre) / (count + 1)
    return replace(out, features=features.masked_fill(~out.mask[..., None], 0).to(tokens.features.dtype))


def _within_frames(x: Tensor, tokens: Tokens, tau: Tensor) -> Tensor:
    """Components within each frame, int64 [B,N]: the tokens of each are gathered into a row of their own."""
    B, T, N = tokens.B, tokens.grid.T, tokens.N
    frame = tokens.frame.masked_fill(~tokens.mask, T)
    order = frame.argsort(dim=1, stable=True)
    count = F.one_hot(frame, T + 1)[..., :T].sum(1)  # [B,T]
    width = max(1, int(count.max()))
    place = torch.arange(width, device=x.device)
    real = place < count[..., None]
    index = order.gather(1, ((count.cumsum(1) - count)[..., None] + place).clamp(max=N - 1).reshape(B, -1))
    rows = x.gather(1, index[..., None].expand(-1, -1, x.shape[2])).reshape(B * T, width, -1)
    label = by_cosine(rows, real.reshape(B * T, width), tau.repeat_interleave(T)).reshape(B, T, width)
    whole = index.reshape(B, T, width).gather(2, label)
    out = torch.arange(N + 1, device=x.device).repeat(B, 1)
    slot = index.masked_fill(~real.reshape(B, -1), N)
    return out.scatter(1, slot, whole.reshape(B, -1))[:, :N]
