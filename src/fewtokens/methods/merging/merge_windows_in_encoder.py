"""Merging within windows between the blocks of an encoder, to the same count in each window."""

from __future__ import annotations

import torch
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.bipartite import bipartite_plan
from fewtokens.methods.ops.groups import plan_from_groups, split_groups
from fewtokens.methods.ops.windows import tokens_per_window, window_cells, window_index, window_targets


class MergeWindowsInEncoder(Reducer):
    """In every block, merges the most similar tokens of each window.

    As `merge_windows`, between attention and MLP and matched on the attention keys; every full window keeps the same
    count.

    Args:
        keep: budget, met by each frame separately and reached evenly over the blocks: a fraction of the cells (float)
            or "8/frame". Default: 0.25.
        window: side of a window in cells, at least 1. Default: 7, as in Swin (8 in Qwen2.5-VL).
    """

    stage = "encoder"
    paper = "variant of Token Merging, arXiv 2210.09461, for windows"
    license = "original to fewtokens"
    cost = "O(n w C / 4) per frame and block, with w cells per window"

    def __init__(self, keep: float | str = 0.25, *, window: int = 7) -> None:
        super().__init__()
        self.set_budget(keep)
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
        group = window_index(tokens, self.window)
        limits = [self._per_window(grid) for grid in tokens.grid.videos(tokens.B)]
        target = window_targets(tokens, self.window, limits)
        parts, slot = split_groups(tokens.replace(features=keys), group, target.shape[1])
        blocks = depth - layer
        goal = target.flatten()
        now = parts.count
        if bool((goal << blocks < now).any()):
            raise ValueError(
                f"{self.spec} cannot be reached in {depth} blocks (each at most halves the count); increase keep"
            )
        evenly = -((goal - now) // blocks)
        r = torch.maximum(evenly, now - (goal << (blocks - 1))).clamp(min=0)
        dest = bipartite_plan(parts.features, r, parts).dest
        assert dest is not None
        return plan_from_groups(dest.masked_fill(~parts.mask, -1), slot, group, tokens)
