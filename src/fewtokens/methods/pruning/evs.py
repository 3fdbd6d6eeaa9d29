"""Efficient Video Sampling (EVS), as served by vLLM; arXiv 2510.14624."""

from __future__ import annotations

from typing import Any

from fewtokens.core.budget import Budget
from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.temporal import LastFrame, compare_with_previous, cosine


class Evs(Reducer):
    """Keeps the tokens that differ most from the previous frame.

    Efficient Video Sampling (arXiv 2510.14624). The first frame is kept in full. A token's score is 1 - cosine to the
    same position in the previous frame (the original one, whether or not its token was kept), ranked over the full
    video. The count is exact and known in advance: max(one frame, keep * cells).

    Args:
        keep: budget, a fraction of the cells (float), a count (int) or "8/frame". Default: 0.25.
        tau: threshold in place of the budget, in [0, 2], for streaming: keeps tokens with 1 - cosine above it. The
            count then depends on the video.
        q: vLLM's pruning rate in place of the budget, in [0, 1), to match the number of placeholders in vLLM:
            max(one frame, int(cells * (1 - q))), in double precision and rounded down. It can be one below keep=1-q:
            119 of 6 x 100 cells at q = 0.8, since 1 - 0.8 is slightly less than 0.2, while keep=0.2 gives 120.
    """

    paper = "Efficient Video Sampling, arXiv 2510.14624; vLLM --video-pruning-rate"
    license = "written from the description; vLLM's file carries two license notices"
    cost = "O(NC); with tau, streaming state: one frame"

    def __init__(
        self, keep: float | int | str | None = None, *, tau: float | None = None, q: float | None = None
    ) -> None:
        super().__init__()
        self.set_budget(keep, default=0.25, tau=tau, q=q)
        if tau is not None and not 0 <= tau <= 2:
            raise ValueError(f"tau must be in [0, 2] (1 - cosine), got {tau}")
        if q is not None:
            self.budget = Budget.pruning(q, caller=self.name)
        self.tau, self.q = tau, q

    @property
    def causal(self) -> bool:
        return self.tau is not None

    def min_count(self, grid: Grid) -> int:
        return grid.cells_per_frame

    def plan(self, tokens: Tokens, *, last: LastFrame | None = None) -> Plan:
        similarity, has_previous = compare_with_previous(cosine, tokens.features, tokens, last)
        change = 1 - similarity
        if self.tau is not None:
            return Plan.keep(tokens.mask & (~has_previous | (change > self.tau)), dropped="held")
        change = change.masked_fill(~has_previous, 255)
        return Plan.top(change, self.counts(tokens), tokens, num_slots=self.max_slots(tokens), dropped="held")

    def step(self, tokens: Tokens, state: LastFrame | None = None, **cues: Any) -> tuple[Tokens, LastFrame]:
        """As `Method.step`; requires tau. Any chunking gives the offline result."""
        if not self.causal:
            return super().step(tokens, state, **cues)
        plan = self.decide(tokens, last=state)
        return tokens.apply(plan), LastFrame.from_tokens(tokens.features, tokens)
