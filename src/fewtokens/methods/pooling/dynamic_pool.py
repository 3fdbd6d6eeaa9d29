"""Dynamic-VLM's pooling: the longer the video, the coarser each frame."""

from __future__ import annotations

import math

from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.blocks import merge_blocks


class DynamicPool(Reducer):
    """Average-pools each frame to a square grid of at most `keep` / frames tokens.

    Dynamic-VLM (arXiv 2412.09530): n = min(keep // T, most) tokens per frame, as a square of floor(sqrt(n)) rows and
    columns, never finer than the frame itself; a video of any length stays within the budget. Cells are assigned to
    blocks without overlap, so each is counted once; if a side is not a multiple of the number of blocks, this differs
    from adaptive pooling by one row or column.

    Args:
        keep: budget of the full video, a fraction of the cells (float), a count (int) or "8/frame"; each frame keeps at
            least one token. Default: 2048, as in the paper.
        most: maximum number of tokens per frame. Default: 144, as in the paper.
    """

    full_grid = True
    paper = "Dynamic-VLM: Simple Dynamic Visual Token Compression for VideoLLM, arXiv 2412.09530"
    license = "written from the description"
    cost = "one pass over the features"

    def __init__(self, keep: float | int | str = 2048, *, most: int = 144) -> None:
        super().__init__()
        self.set_budget(keep)
        if not isinstance(most, int) or isinstance(most, bool) or most < 1:
            raise ValueError(f"most must be a count of at least 1, got {most!r}")
        self.most = most

    def _shape(self, grid: Grid) -> tuple[int, int, int]:
        assert self.budget is not None
        side = math.isqrt(max(1, min(int(self.budget.amount(grid) + 1e-6) // grid.T, self.most)))
        return grid.T, min(side, grid.H), min(side, grid.W)

    def planned_count(self, grid: Grid) -> int:
        return math.prod(self._shape(grid))

    def plan(self, tokens: Tokens) -> Plan:
        return merge_blocks(tokens, [self._shape(grid) for grid in tokens.grid.videos(tokens.B)])
