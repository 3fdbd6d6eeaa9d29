"""Efficient Video Sampling (EVS), as served by vLLM; arXiv 2510.14624."""

from __future__ import annotations

from fewtokens.grid import Grid
from fewtokens.method import Method, check_keep, planned_count
from fewtokens.plan import Plan
from fewtokens.reduce.temporal import cosine, with_previous
from fewtokens.tokens import Tokens


class Evs(Method):
    """Keeps the tokens that differ most from the same place one frame before; the first frame whole.

    The count is exact and known ahead: max(one frame, keep * cells). Which tokens they are is decided over
    the whole video at once, by 1 - cosine to the frame before (the original one, kept or not).

    Args:
        keep: share of the cells (float) or count (int). The papers' pruning rate is q = 1 - keep.
    """

    paper = "Efficient Video Sampling, arXiv 2510.14624; vLLM --video-pruning-rate"
    licence = "written from the description; vLLM's file carries two notices"
    cost = "O(NC)"
    fill = "hold"

    def __init__(self, keep: float | int = 0.25) -> None:
        super().__init__()
        self.keep = check_keep(keep)

    def planned_count(self, grid: Grid) -> int:
        return max(grid.cells_per_frame, planned_count(grid, self.keep))

    def plan(self, tokens: Tokens) -> Plan:
        before, known = with_previous(tokens.features, tokens)
        change = 1 - cosine(tokens.features, before)
        return Plan.top(change.masked_fill(~known, 255), self.counts(tokens), tokens)
