"""Hourglass Tokenizer's selection: the frames that stand for the others."""

from __future__ import annotations

import torch

from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.density import density_peaks


class Hourglass(Reducer):
    """Keeps whole frames: those at the density peaks of the video, in order of time.

    Hourglass Tokenizer (HoT, arXiv 2311.12028), token pruning cluster (TPC): frames are clustered by their mean feature
    around density peaks, and the peaks themselves stay. The way back to all frames is `unmerge`, which gives a dropped
    frame the nearest one that stayed; the paper learns an attention layer for it.

    As many frames as fit into the budget, at least one. Equal densities are ordered by place, not by noise.

    Args:
        keep: share of the cells (float) or count (int).
        neighbors: frames, itself among them, that make up the density; 2 in the paper.
    """

    paper = "Hourglass Tokenizer (HoT), arXiv 2311.12028, section 3.2"
    license = "written from the description; reference MIT"
    cost = "O(NC + T^2 C)"
    full_grid = True

    def __init__(self, keep: float | int | str = 0.25, *, neighbors: int = 2) -> None:
        super().__init__()
        self.take_budget(keep)
        if neighbors < 1:
            raise ValueError(f"neighbors must be at least 1 (the frame itself), got {neighbors}")
        self.neighbors = neighbors

    def planned_count(self, grid: Grid) -> int:
        assert self.budget is not None
        return max(1, self.budget.count(grid) // grid.cells_per_frame) * grid.cells_per_frame

    def plan(self, tokens: Tokens) -> Plan:
        n = tokens.grid.cells_per_frame
        frames = tokens.require_full_grid(self.name).features.float().unflatten(1, (tokens.grid.T, n)).mean(2)
        there = tokens.mask.unflatten(1, (tokens.grid.T, n))[..., 0]
        score = density_peaks(frames, there, self.neighbors)
        rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        kept = (rank < self.counts(tokens)[:, None] // n) & there
        return Plan.keep(torch.repeat_interleave(kept, n, dim=1))
