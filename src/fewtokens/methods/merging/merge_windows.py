"""Merging within windows, to the same count in each: for encoders with windowed attention."""

from __future__ import annotations

from typing import Any

from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.groups import merge_within
from fewtokens.methods.ops.windows import tokens_per_window, window_cells, window_index, window_targets


class MergeWindows(Reducer):
    """Merges similar tokens within each window, to the same count per window.

    A variant of ToMe for windowed encoders (Swin, SAM, Qwen2.5-VL): windows keep their positions and equal sizes, so a
    batch of windows needs no padding, and `unmerge` restores the grid for a dense head. Every full window of a frame
    keeps the same count, the largest that fits the budget (windows cut by the border may have fewer). Between the
    blocks of an encoder: `merge_windows_in_encoder`.

    Args:
        keep: budget, a fraction of the cells (float), a count (int) or "8/frame". Default: 0.25.
        window: side of a window in cells, at least 1. Default: 7, as in Swin (8 in Qwen2.5-VL).
    """

    paper = "variant of Token Merging, arXiv 2210.09461, for windows"
    license = "original to fewtokens"
    cost = "O(N w C / 4) with w cells per window"

    def __init__(self, keep: float | int | str = 0.25, *, window: int = 7) -> None:
        super().__init__()
        self.set_budget(keep)
        if window < 1:
            raise ValueError(f"window must be at least 1 cell, got {window}")
        self.window = window

    def _per_window(self, grid: Grid) -> int:
        assert self.budget is not None
        return tokens_per_window(grid, self.window, self.budget)

    def planned_count(self, grid: Grid) -> int:
        k = self._per_window(grid)
        return grid.T * sum(min(k, n) for n in window_cells(grid, self.window))

    def plan(self, tokens: Tokens, **cues: Any) -> Plan:
        limits = [self._per_window(grid) for grid in tokens.grid.videos(tokens.B)]
        return merge_within(tokens, window_index(tokens, self.window), window_targets(tokens, self.window, limits))
