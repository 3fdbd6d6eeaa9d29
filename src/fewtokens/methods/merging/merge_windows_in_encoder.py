"""Merging within windows between the blocks of an encoder, equally many in each window."""

from __future__ import annotations

import torch
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.bipartite import bipartite_plan
from fewtokens.methods.ops.groups import grouped, regroup
from fewtokens.methods.ops.windows import tokens_per_window, window_cells, window_of, window_targets


class MergeWindowsInEncoder(Reducer):
    """In every block merges the most similar tokens of each window, matched on the attention keys.

    As `merge_windows`, between attention and MLP; every whole window of a frame keeps the same number of tokens.

    Args:
        keep: share of the cells, met by each frame, reached evenly over the blocks.
        window: rows and columns of a window in cells; 7 in Swin, 8 in Qwen2.5-VL.
    """

    stage = "encoder"
    paper = "variant of Token Merging, arXiv 2210.09461, for windows"
    license = "ours"
    cost = "O(n w C / 4) a frame and block, with w cells of a window"

    def __init__(self, keep: float | str = 0.25, *, window: int = 7) -> None:
        super().__init__()
        self.take_budget(keep)
        if window < 1:
            raise ValueError(f"window must be at least 1 cell, got {window}")
        self.window = window

    @property
    def needs(self) -> tuple[str, ...]:
        return ("keys",)

    def _per_window(self, grid: Grid) -> int:
        assert self.budget is not None
        return tokens_per_window(grid.frame, self.window, self.budget)

    def planned_count(self, grid: Grid) -> int:
        k = self._per_window(grid)
        return grid.T * sum(min(k, n) for n in window_cells(grid, self.window))

    def plan(self, tokens: Tokens, *, keys: Tensor, layer: int = 0, depth: int = 1) -> Plan:
        group = window_of(tokens, self.window)
        limits = [self._per_window(grid) for grid in tokens.grid.videos(tokens.B)]
        target = window_targets(tokens, self.window, limits)
        parts, slot = grouped(tokens.replace(features=keys), group, target.shape[1])
        blocks = depth - layer
        left = target.flatten()
        now = parts.count
        if bool((left << blocks < now).any()):
            raise ValueError(f"{self.spec} cannot be reached in {depth} blocks, each halves at most; keep more")
        evenly = -((left - now) // blocks)
        r = torch.maximum(evenly, now - (left << (blocks - 1))).clamp(min=0)
        dest = bipartite_plan(parts.features, r, parts).dest
        assert dest is not None
        return regroup(dest.masked_fill(~parts.mask, -1), slot, group, tokens)
