"""Spatial down-sampling: every frame on a coarser grid."""

from __future__ import annotations

from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.blocks import merge_blocks, shrink


class Downsample(Reducer):
    """Area pooling of every frame to a coarser grid; time stays whole.

    The plain baseline that beats many published compressors (VTC-Bench, arXiv 2510.07143). The count is
    known ahead and never over the budget, but the product of rows and columns that fits. Only a
    budget of fewer tokens than frames pools frames too. It pools what the encoder gave; to spare the encoder
    as well, read the video at a smaller size.

    Args:
        keep: share of the cells (float) or count (int).
    """

    paper = "baseline"
    license = "none needed"
    cost = "O(NC)"

    def __init__(self, keep: float | int | str = 0.25) -> None:
        super().__init__()
        self.take_budget(keep)

    def shape(self, grid: Grid) -> tuple[int, int, int]:
        """The coarser grid (T',H',W')."""
        assert self.budget is not None
        budget = self.budget.count(grid)
        frames = min(grid.T, budget)
        rows, columns = shrink((grid.H, grid.W), budget // frames)
        return frames, rows, columns

    def planned_count(self, grid: Grid) -> int:
        t, h, w = self.shape(grid)
        return t * h * w

    def plan(self, tokens: Tokens) -> Plan:
        return merge_blocks(tokens, [self.shape(grid) for grid in tokens.grid.videos(tokens.B)])
