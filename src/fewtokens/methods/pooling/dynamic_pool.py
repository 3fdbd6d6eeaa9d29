"""Dynamic-VLM's pooling: the longer the video, the coarser each frame."""

from __future__ import annotations

import math

from fewtokens.core.grid import Grid
from fewtokens.core.method import Method
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.blocks import merge_blocks


class DynamicPool(Method):
    """Each frame is pooled to a square of at most `total` / frames tokens, so that a video of any length fits.

    Dynamic-VLM (arXiv 2412.09530): n = min(total // T, most) tokens a frame, as a square of floor(sqrt(n)) rows, never
    finer than the frame itself. Cells are dealt to blocks without overlap, so each counts once; where a side is no
    multiple that differs from adaptive pooling by a row.

    Args:
        total: tokens of a video, 2048 in the paper.
        most: tokens of a frame, 144 there.
    """

    paper = "Dynamic-VLM: Simple Dynamic Visual Token Compression for VideoLLM, arXiv 2412.09530"
    license = "written from the description"
    cost = "one pass over the features"
    partition = True
    conserves = True
    dense = True

    def __init__(self, total: int = 2048, *, most: int = 144) -> None:
        super().__init__()
        for name, value in (("total", total), ("most", most)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a count of at least 1, got {value!r}")
        self.total, self.most = total, most

    def _shape(self, grid: Grid) -> tuple[int, int, int]:
        side = math.isqrt(max(1, min(self.total // grid.T, self.most)))
        return grid.T, min(side, grid.H), min(side, grid.W)

    def planned_count(self, grid: Grid) -> int:
        return math.prod(self._shape(grid))

    def plan(self, tokens: Tokens) -> Plan:
        tokens.require_full_grid(self.name)
        return merge_blocks(tokens, [self._shape(grid) for grid in tokens.grid.videos(tokens.B)])
