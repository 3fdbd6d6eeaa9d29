"""Mean pooling over space and time."""

from __future__ import annotations

import math

from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.blocks import merge_blocks, shrink_shape


class MeanPool(Reducer):
    """Average-pools space-time blocks; all axes shrink by about the same factor.

    The count is known in advance and never exceeds the budget. A budget of 1 gives the mean of the full video.

    Args:
        keep: budget, a fraction of the cells (float), a count (int) or "8/frame". Default: 0.25.
    """

    paper = "baseline"
    license = "none needed"
    cost = "O(NC)"

    def __init__(self, keep: float | int | str = 0.25) -> None:
        super().__init__()
        self.set_budget(keep)

    def shape(self, grid: Grid) -> tuple[int, int, int]:
        """The shape (T',H',W') of the coarser grid."""
        assert self.budget is not None
        frames, rows, columns = shrink_shape(grid.shape, self.budget.count(grid))
        return frames, rows, columns

    def planned_count(self, grid: Grid) -> int:
        return math.prod(self.shape(grid))

    def plan(self, tokens: Tokens) -> Plan:
        return merge_blocks(tokens, [self.shape(grid) for grid in tokens.grid.videos(tokens.B)])
