"""STTM: a quadtree of each frame, its nodes joined over time."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.grid import Grid
from fewtokens.method import Method, check_keep, planned_count
from fewtokens.plan import Plan
from fewtokens.reduce.components import components
from fewtokens.reduce.search import to_budget
from fewtokens.reduce.temporal import cosine
from fewtokens.tokens import Tokens


class Sttm(Method):
    """Plain regions of a frame become one large square token, and squares that stay the same join over time.

    STTM (arXiv 2507.07990), multi-granular merging. Space: on a pyramid of 2x2 means a node stays whole if it is like
    each of its children (cosine at least tau), from the coarsest level down; otherwise it is split. Time: nodes of
    neighbouring frames are joined if one contains the other and they are alike (tau_time). A joined token is the mean
    of its nodes, each counting once whatever its size.

    Nodes that lie over one another are found cell by cell, so the work grows with the cells and not with pairs of
    nodes. At odd sides the last row or column makes narrower nodes (the published code takes the first).

    Args:
        tau: likeness in space; 0.85 for about half of the tokens, tuned for each data set in the paper.
        tau_time: likeness over time; 0.6.
        levels: halvings of the frame up to the coarsest node; 3 is 8x8 cells.
        weighted: nodes count by their size instead.
        keep: a budget instead of tau and tau_time, which are then equal and searched for, and what is left is merged
            pairwise to the exact count.
    """

    paper = "Multi-Granular Spatio-Temporal Token Merging (STTM), arXiv 2507.07990"
    licence = "written from the description; the reference code has no licence"
    cost = "O(levels * N C); with keep nine times that"
    instead_of_keep = ("tau", "tau_time")
    partition = True
    dense = True
    budget = False

    def __init__(
        self,
        tau: float | None = None,
        *,
        tau_time: float | None = None,
        levels: int = 3,
        weighted: bool = False,
        keep: float | int | None = None,
    ) -> None:
        super().__init__()
        if keep is not None and (tau is not None or tau_time is not None):
            raise ValueError("sttm takes tau= and tau_time=, or keep=, not both")
        for name, value in (("tau", tau), ("tau_time", tau_time)):
            if value is not None and not -1 <= value <= 1.01:
                raise ValueError(f"{name} is a cosine, in [-1, 1], got {value}")
        if levels < 0:
            raise ValueError(f"levels must be at least 0, got {levels}")
        self.keep = None if keep is None else check_keep(keep)
        self.tau, self.tau_time, self.levels, self.weighted = tau, tau_time, levels, bool(weighted)
        self.budget = keep is not None

    def planned_count(self, grid: Grid) -> int | None:
        return None if self.keep is None else planned_count(grid, self.keep)

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        tokens.whole_grid(self.name)
        if self.keep is not None:
            # Nothing is alike above 1, so the highest threshold leaves all.
            return to_budget(lambda tau: self._reduce(tokens, tau, tau), self.counts(tokens), -1.0, 1.01)
        taus = [0.85 if self.tau is None else self.tau, 0.6 if self.tau_time is None else self.tau_time]
        space, time = (torch.full((tokens.B,), tau, device=tokens.device) for tau in taus)
        return self._reduce(tokens, space, time)

    def _reduce(self, tokens: Tokens, tau: Tensor, tau_time: Tensor) -> Tokens:
        with torch.no_grad():
            node, mean = quadtree(tokens, tau, self.levels)
            label = _over_time(node, mean, tokens, tau_time)
            plan = Plan.group(label, tokens, tokens.N)
            # Each cell's part in its node, and each node's in its token.
            one = torch.ones_like(tokens.sizes)
            cells = torch.zeros_like(one).scatter_add(1, node, one).gather(1, node)
            assert plan.dest is not None
            if self.weighted:
                part, _ = plan.shares(one)
            else:
                part, _ = plan.shares(1 / cells)
        return tokens.apply(plan).replace(features=plan.average(tokens.features, part.masked_fill(plan.dest < 0, 0)))


def quadtree(tokens: Tokens, tau: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """The nodes of each frame: of every cell the upper left cell of its node, int64 [B,N], and its mean [B,N,C].

    Args:
        tokens: one for each cell.
        tau: [B], likeness at which a node stays whole.
        levels: of the pyramid above the cells.
    """
    (B, C), (T, H, W) = (tokens.B, tokens.C), tokens.grid.shape
    x = tokens.features.float().reshape(B * T, H, W, C).permute(0, 3, 1, 2)
    y, u = torch.meshgrid(torch.arange(H, device=x.device), torch.arange(W, device=x.device), indexing="ij")
    level = torch.zeros(B * T, H, W, dtype=torch.int64, device=x.device)
    mean = x
    limit = tau.repeat_interleave(T)[:, None, None]
    below = x
    for up in range(1, levels + 1):
        if below.shape[2] == below.shape[3] == 1:
            break
        above = F.avg_pool2d(below, 2, ceil_mode=True, count_include_pad=False)
        spread = above.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, : below.shape[2], : below.shape[3]]
        unlike = (cosine(spread.movedim(1, -1), below.movedim(1, -1)) < limit).float()
        whole = F.max_pool2d(unlike[:, None], 2, ceil_mode=True)[:, 0] == 0
        # Going up, a whole node takes the place of what is below it: from the top down it is met first.
        own = whole[:, y >> up, u >> up]
        level = torch.where(own, up, level)
        mean = torch.where(own[:, None], above[:, :, y >> up, u >> up], mean)
        below = above
    corner = ((y >> level) << level) * W + ((u >> level) << level)
    frame = torch.arange(T, device=x.device).repeat(B)[:, None, None] * (H * W)
    return (corner + frame).reshape(B, -1), mean.permute(0, 2, 3, 1).reshape(B, -1, C)


def _over_time(node: Tensor, mean: Tensor, tokens: Tokens, tau: Tensor) -> Tensor:
    """Nodes joined over time, int64 [B,N]; -1 where there is no token."""
    n = tokens.grid.cells_per_frame
    if tokens.grid.T == 1:
        return node.masked_fill(~tokens.mask, -1)
    before, after = node[:, :-n], node[:, n:]
    linked = (cosine(mean[:, :-n], mean[:, n:]) >= tau[:, None]) & tokens.mask[:, n:]

    def lowest(label: Tensor) -> Tensor:
        # Each cell shows its two nodes to one another.
        a, b = label.gather(1, before), label.gather(1, after)
        seen = label.scatter_reduce(1, before, torch.where(linked, b, a), "amin")
        return seen.scatter_reduce(1, after, torch.where(linked, a, b), "amin")

    return components(lowest, tokens.mask).gather(1, node).masked_fill(~tokens.mask, -1)
