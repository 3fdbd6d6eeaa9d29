"""Spatial downsampling: every frame on a coarser grid."""

from __future__ import annotations

from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.blocks import merge_blocks, shrink_shape


class Downsample(Reducer):
    """Average-pools every frame to a coarser grid; keeps the number of frames.

    A simple baseline that beats many published compressors (VTC-Bench, arXiv 2510.07143). The count is known in advance
    and never exceeds the budget; it can be below it, since rows times columns must fit. Frames are pooled over time
    only if the budget has fewer tokens than the video has frames. The encoder's output is pooled; to save encoder time
    as well, read the video at a smaller size.

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
        budget = self.budget.count(grid)
        frames = min(grid.T, budget)
        rows, columns = shrink_shape((grid.H, grid.W), budget // frames)
        return frames, rows, columns

    def planned_count(self, grid: Grid) -> int:
        t, h, w = self.shape(grid)
        return t * h * w

    def plan(self, tokens: Tokens) -> Plan:
        return merge_blocks(tokens, [self.shape(grid) for grid in tokens.grid.videos(tokens.B)])
