"""Efficient Video Sampling (EVS), as served by vLLM; arXiv 2510.14624."""

from __future__ import annotations

import torch

from fewtokens.core.grid import Grid
from fewtokens.core.method import Method, check_keep, check_rate, planned_count, pruned_count
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.temporal import LastFrame, cosine, with_previous


class Evs(Method):
    """Keeps the tokens that differ most from the same place one frame before; the first frame whole.

    The count is exact and known ahead: max(one frame, keep * cells). Which tokens they are is decided over
    the whole video at once, by 1 - cosine to the frame before (the original one, kept or not).

    Args:
        keep: share of the cells (float) or count (int); 0.25 by default.
        tau: a threshold instead, for streams: keeps what has 1 - cosine above it. The count then depends on the video.
        q: vLLM's pruning rate instead, in [0, 1), for those who size placeholders with its count. That is
            max(one frame, int(cells * (1 - q))) in double precision, cut off: 119 of 6 x 100 cells at q = 0.8, since
            1 - 0.8 is a little less than 0.2, where keep=0.2 gives 120.
    """

    paper = "Efficient Video Sampling, arXiv 2510.14624; vLLM --video-pruning-rate"
    license = "written from the description; vLLM's file carries two notices"
    cost = "O(NC); with a threshold a streaming state of one frame"
    instead_of_keep = ("tau", "q")
    fill = "hold"

    def __init__(self, keep: float | int | None = None, *, tau: float | None = None, q: float | None = None) -> None:
        super().__init__()
        if sum(value is not None for value in (keep, tau, q)) > 1:
            raise ValueError("evs takes one of keep=, tau= and q=")
        if tau is not None and not 0 <= tau <= 2:
            raise ValueError(f"tau is 1 - cosine, in [0, 2], got {tau}")
        if q is not None:
            check_rate(q)
        self.keep = check_keep(0.25 if keep is None else keep) if tau is q is None else None
        self.tau, self.q = tau, q
        self.budget = tau is None
        self.causal = tau is not None

    def planned_count(self, grid: Grid) -> int | None:
        if self.tau is not None:
            return None
        wanted = pruned_count(grid, self.q) if self.q is not None else planned_count(grid, self.keep)
        return max(grid.cells_per_frame, wanted)

    def plan(self, tokens: Tokens, *, last: torch.Tensor | None = None) -> Plan:
        before, known = with_previous(tokens.features, tokens, last)
        change = 1 - cosine(tokens.features, before)
        if self.tau is not None:
            return Plan.keep(tokens.mask & (~known | (change > self.tau)))
        return Plan.top(change.masked_fill(~known, 255), self.counts(tokens), tokens)

    def step(self, tokens: Tokens, state: LastFrame | None = None) -> tuple[Tokens, LastFrame]:
        """The next frames of a video, one token for each cell; any chunking gives the offline result."""
        if self.tau is None:
            raise ValueError("evs with a budget looks at the whole video; chunk by chunk it takes tau=")
        tokens.require_full_grid("evs")
        with torch.no_grad():
            plan = self.plan(tokens, last=None if state is None else state.last)
        return tokens.apply(plan), LastFrame(tokens.features[:, -tokens.grid.cells_per_frame :].detach())
