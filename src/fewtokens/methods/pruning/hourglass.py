"""Hourglass Tokenizer's selection: the representative frames of a video."""

from __future__ import annotations

import torch
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.density import density_peaks


class Hourglass(Reducer):
    """Keeps full frames: those at the density peaks of the video.

    Hourglass Tokenizer (HoT, arXiv 2311.12028), token pruning cluster (TPC): frames are clustered by their mean feature
    around density peaks, and the peaks are kept in time order: as many frames as fit into the budget, at least one.
    `unmerge` restores a dropped frame from the nearest kept one; the paper learns an attention layer for it. Equal
    densities are ordered by position, not by added noise.

    Args:
        keep: budget, a fraction of the cells (float), a count (int) or "8/frame". Default: 0.25.
        neighbors: number of nearest frames that define the density, the frame itself included. Default: 2, as in the
            paper.
    """

    paper = "Hourglass Tokenizer (HoT), arXiv 2311.12028, section 3.2"
    license = "written from the description; reference code MIT"
    cost = "O(NC + T^2 C)"
    full_grid = True

    def __init__(self, keep: float | int | str = 0.25, *, neighbors: int = 2) -> None:
        super().__init__()
        self.set_budget(keep)
        if neighbors < 1:
            raise ValueError(f"neighbors must be at least 1 (the frame itself), got {neighbors}")
        self.neighbors = neighbors

    def planned_count(self, grid: Grid) -> int:
        assert self.budget is not None
        return max(1, self.budget.count(grid) // grid.cells_per_frame) * grid.cells_per_frame

    def plan(self, tokens: Tokens) -> Plan:
        n = tokens.grid.cells_per_frame
        frames = _means(tokens.features.float().unflatten(1, (tokens.grid.T, n)))
        real_frames = tokens.mask.unflatten(1, (tokens.grid.T, n))[..., 0]
        score = density_peaks(frames, real_frames, self.neighbors)
        rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        survives = (rank < self.counts(tokens)[:, None] // n) & real_frames
        return Plan.keep(torch.repeat_interleave(survives, n, dim=1))


def _means(frames: Tensor) -> Tensor:
    """The mean of each frame, [B,T,n,C] -> [B,T,C]."""
    if frames.device.type != "cpu":
        return frames.mean(2)
    # On a CPU a matrix product reads the rows faster than a mean.
    with torch.autocast("cpu", enabled=False):
        n = frames.shape[2]
        return (frames.new_full((1, n), 1 / n) @ frames).squeeze(2)
