"""STTM: a quadtree of each frame, its nodes joined over time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.method import Method
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.components import components
from fewtokens.methods.ops.search import to_budget
from fewtokens.methods.ops.temporal import cosine


class Sttm(Method):
    """Plain regions of a frame become one large square token, and squares that stay the same join over time.

    STTM (arXiv 2507.07990), multi-granular merging. Space: on a pyramid of 2x2 means a node stays whole if it is like
    each of its children (cosine at least tau), from the coarsest level down; otherwise it is split. Time: nodes of
    neighboring frames are joined if one contains the other and they are alike (tau_time). A node is the mean of its
    children, whatever their sizes, and a joined token the mean of its nodes.

    Nodes that lie over one another are found cell by cell, so the work grows with the cells and not with pairs of
    nodes. All nodes that hang together over any number of steps are joined. The published code stops spreading labels
    too early and leaves some of them apart (of three clips up to 7 % of the tokens differ for that, and no others);
    a variant that it no longer calls writes them in a race. It takes a tau_time of 0 or less as "join nothing".

    Args:
        tau: likeness in space; 0.85 for about half of the tokens, tuned for each data set in the paper.
        tau_time: likeness over time; 0.6.
        levels: halvings of the frame up to the coarsest node; by default one fewer than lead to two rows or columns, as
            in the published runs (2 on 13x13 and 14x14: nodes of up to 4x4 cells; 3 on 24x24; 0 on 4x4, where nothing
            merges in space).
        weighted: nodes and tokens are plain means of their cells.
        strips: "first", as published: an odd side begins with a narrower node, and a node that lacks children is
            compared with the first node of the level below in their place; "last": an odd side ends with a narrower
            node, compared with the children it has.
        keep: a budget instead of tau and tau_time, which are then equal and searched for, and what is left is merged
            pairwise to the exact count.
    """

    paper = "Multi-Granular Spatio-Temporal Token Merging (STTM), arXiv 2507.07990"
    license = "written from the description; the reference code has no licence"
    cost = "O(levels * N C); with keep nine times that"
    full_grid = True

    def __init__(
        self,
        tau: float | None = None,
        *,
        tau_time: float | None = None,
        levels: int | None = None,
        weighted: bool = False,
        strips: str = "first",
        keep: float | int | str | None = None,
    ) -> None:
        super().__init__()
        if tau is None:
            self.take_budget(keep, tau_time=tau_time)
        else:
            self.take_budget(keep, tau=tau)
        for name, value in (("tau", tau), ("tau_time", tau_time)):
            if value is not None and not -1 <= value <= 1.01:
                raise ValueError(f"{name} is a cosine, in [-1, 1], got {value}")
        if levels is not None and levels < 0:
            raise ValueError(f"levels must be at least 0, got {levels}")
        if strips not in ("first", "last"):
            raise ValueError(f"strips of an odd side come 'first' or 'last', not {strips!r}")
        self.tau, self.tau_time, self.levels, self.weighted = tau, tau_time, levels, bool(weighted)
        self.strips = strips

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        tokens.require_full_grid(self.name)
        if self.budget is not None:
            # Nothing is alike above 1, so the highest threshold leaves all.
            return to_budget(lambda tau: self._reduce(tokens, tau, tau), self.counts(tokens), -1.0, 1.01)
        taus = [0.85 if self.tau is None else self.tau, 0.6 if self.tau_time is None else self.tau_time]
        space, time = (torch.full((tokens.B,), tau, device=tokens.device) for tau in taus)
        return self._reduce(tokens, space, time)

    def _reduce(self, tokens: Tokens, tau: Tensor, tau_time: Tensor) -> Tokens:
        with torch.no_grad():
            levels = published_levels(tokens.grid) if self.levels is None else self.levels
            node, mean, part = quadtree(tokens, tau, levels, weighted=self.weighted, strips=self.strips)
            plan = Plan.group(_over_time(node, mean, tokens, tau_time), tokens, tokens.N)
            # Each cell's part in its token: in its node, and of the node among the token's.
            part, _ = plan.parts(torch.ones_like(part) if self.weighted else part)
            assert plan.dest is not None
        return tokens.apply(replace(plan, shares=part))


def published_levels(grid: Grid) -> int:
    """Halvings until two rows or two columns are left, less one: the root level 1 of the published runs."""
    halvings, height, width = 0, grid.H, grid.W
    while height > 2 and width > 2:
        halvings, height, width = halvings + 1, -(-height // 2), -(-width // 2)
    return max(0, halvings - 1)


def quadtree(
    tokens: Tokens, tau: Tensor, levels: int, *, weighted: bool = False, strips: str = "first"
) -> tuple[Tensor, Tensor, Tensor]:
    """The nodes of each frame, for every cell: the upper left cell of its node, the node's mean, its part in that mean.

    Args:
        tokens: one for each cell.
        tau: [B], likeness at which a node stays whole.
        levels: of the pyramid above the cells.
        weighted, strips: as in `Sttm`.

    Returns:
        int64 [B,N], float32 [B,N,C] and float32 [B,N].
    """
    (B, C), (T, H, W) = (tokens.B, tokens.C), tokens.grid.shape
    below = tokens.features.float().reshape(B * T, H, W, C)
    limit = tau.repeat_interleave(T)[:, None, None]
    mean = below
    corner = torch.arange(H * W, device=below.device).reshape(H, W).expand(B * T, -1, -1)
    part = torch.ones(B * T, H, W, device=below.device)
    # Of the nodes of a level: cells [h,w]. Of every cell: the row and column of its node, and its part in it.
    cells = part[0]
    y, u = torch.arange(H, device=below.device), torch.arange(W, device=below.device)
    inside = part[0]
    for _ in range(levels):
        h, w = cells.shape
        if h == w == 1:
            break
        # Narrower nodes come first where a row or column is put in front.
        before = (h % 2, w % 2) if strips == "first" else (0, 0)
        up, across = (
            (torch.arange(side, device=y.device) + extra) // 2 for side, extra in zip((h, w), before, strict=True)
        )
        children = _blocks(torch.ones_like(cells), before).sum(2)
        weight = cells if weighted else torch.ones_like(cells)
        share = weight / _blocks(weight, before).sum(2)[up][:, across]
        above = _blocks(below * share[..., None], before).sum(3)
        spread = above[:, up][:, :, across]
        whole = ~_blocks((cosine(spread, below) < limit), before).any(3)
        if strips == "first":
            whole &= (cosine(above, below[:, :1, :1].expand_as(above)) >= limit) | (children == 4)
        cells, below = _blocks(cells, before).sum(2), above
        inside = inside * share[y][:, u]
        y, u = (y + before[0]) // 2, (u + before[1]) // 2
        # Going up, a whole node takes the place of what is below it: from the top down it is met first.
        own = whole[:, y][:, :, u]
        top, left = (torch.searchsorted(place, place) for place in (y, u))
        corner = torch.where(own, top[:, None] * W + left, corner)
        mean = torch.where(own[..., None], above[:, y][:, :, u], mean)
        part = torch.where(own, inside, part)
    frame = torch.arange(T, device=mean.device).repeat(B)[:, None, None] * (H * W)
    return (corner + frame).reshape(B, -1), mean.reshape(B, -1, C), part.reshape(B, -1)


def _blocks(x: Tensor, before: tuple[int, int]) -> Tensor:
    """[...,h,w,(C)] of numbers or flags to 2x2 blocks [...,h/2,w/2,4,(C)]; what is not there is 0.

    Args:
        x: [h,w], [F,h,w] or [F,h,w,C].
        before: rows and columns of nothing in front, 0 or 1.
    """
    first = 0 if x.ndim == 2 else 1
    h, w = x.shape[first : first + 2]
    after = ((h + before[0]) % 2, (w + before[1]) % 2)
    pad = (before[1], after[1], before[0], after[0])
    x = F.pad(x, (0, 0, *pad) if x.ndim == 4 else pad)
    x = x.unflatten(first + 1, (-1, 2)).unflatten(first, (-1, 2)).transpose(first + 1, first + 2)
    return x.flatten(first + 2, first + 3)


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
