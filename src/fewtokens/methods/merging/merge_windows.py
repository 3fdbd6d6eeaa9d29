"""Merging within windows, equally many in each: for encoders whose attention works in windows."""

from __future__ import annotations

import torch
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.method import Method, check_keep, check_share, planned_count
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.bipartite import bipartite_plan
from fewtokens.methods.ops.groups import grouped, merge_within, regroup


class MergeWindows(Method):
    """Merges the most similar tokens of each window of a frame; every whole window keeps the same number.

    What users of windowed encoders (Swin, SAM, Qwen2.5-VL) ask of ToMe: windows stay, and stay equal, so that a batch
    of windows needs no padding, and `unmerge` gives the grid back to a dense head. As many tokens for each window as
    the budget has for all of them (windows cut by the border may have fewer).

    Args:
        keep: share of the cells (float) or count (int); inside an encoder a share.
        window: rows and columns of a window in cells; 7 in Swin, 8 in Qwen2.5-VL.
        stage: "tokens", matched on features; "encoder": some in every block, matched on the attention keys.
    """

    paper = "variant of Token Merging, arXiv 2210.09461, for windows"
    license = "ours"
    cost = "O(N w C / 4) with w cells of a window"
    partition = True
    conserves = True

    def __init__(self, keep: float | int = 0.25, *, window: int = 7, stage: str = "tokens") -> None:
        super().__init__()
        self.keep = check_keep(keep)
        if window < 1:
            raise ValueError(f"window must be at least 1 cell, got {window}")
        if stage not in ("tokens", "encoder"):
            raise ValueError(f"merge_windows works at stage 'tokens' or 'encoder', not {stage!r}")
        if stage == "encoder":
            self.needs = ("keys",)
            check_share(self.keep)
        self.window, self.stage = window, stage

    def _cells(self, grid: Grid) -> list[int]:
        """Cells of each window of a frame, row by row."""
        rows, columns = ([min(self.window, n - at) for at in range(0, n, self.window)] for n in (grid.H, grid.W))
        return [row * column for row in rows for column in columns]

    def _of_each(self, grid: Grid) -> int:
        """Tokens of each window: the most that fit into the budget, at least 1."""
        cells = self._cells(grid)
        if self.stage == "encoder":
            grid = Grid(1, grid.H, grid.W)
        budget = planned_count(grid, self.keep)
        fitting = [k for k in range(1, max(cells) + 1) if grid.T * sum(min(k, n) for n in cells) <= budget]
        return fitting[-1] if fitting else 1

    def planned_count(self, grid: Grid) -> int:
        k = self._of_each(grid)
        return grid.T * sum(min(k, n) for n in self._cells(grid))

    def _window(self, tokens: Tokens) -> Tensor:
        """The number of each token's window in its video, int64 [B,N]; -1 in padded slots."""
        across = -(-tokens.grid.W // self.window)
        down = -(-tokens.grid.H // self.window)
        # A mean of places within a window lies within it.
        y, x = (tokens.positions[..., axis].floor().long() // self.window for axis in (1, 2))
        return ((tokens.frame * down + y) * across + x).masked_fill(~tokens.mask, -1)

    def plan(self, tokens: Tokens, *, keys: Tensor | None = None, layer: int = 0, depth: int = 1) -> Plan:
        group = self._window(tokens)
        cells = self._cells(tokens.grid)
        size = torch.tensor(cells, device=tokens.device).repeat(tokens.grid.T)
        limits = [self._of_each(grid) for grid in tokens.grid.videos(tokens.B)]
        target = torch.tensor(limits, device=tokens.device)[:, None].minimum(size)  # [B,windows]
        if keys is None:
            return merge_within(tokens, group, target)
        parts, slot = grouped(tokens.replace(features=keys), group, len(size))
        blocks = depth - layer
        left = target.flatten()
        now = parts.count
        if bool((left << blocks < now).any()):
            raise ValueError(f"merge_windows cannot reach keep={self.keep} in {depth} blocks; keep more")
        evenly = -((left - now) // blocks)
        r = torch.maximum(evenly, now - (left << (blocks - 1))).clamp(min=0)
        return regroup(parts.apply(bipartite_plan(parts.features, r, parts)), slot, group, tokens)
