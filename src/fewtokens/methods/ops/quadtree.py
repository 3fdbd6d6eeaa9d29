"""A quadtree of each frame whose nodes merge over time: the computation of STTM (arXiv 2507.07990)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.components import components
from fewtokens.methods.ops.search import reduce_to_budget
from fewtokens.methods.ops.temporal import cosine


@dataclass(frozen=True)
class Squares:
    """Merges similar squares of a frame, and squares that stay similar over time.

    Args:
        tau: cosine in space from which nodes merge. Default: None, 0.85.
        tau_time: cosine over time from which nodes merge. Default: None, 0.6.
        levels: halvings of the frame up to the coarsest node. Default: None, `published_levels`.
        weighted: whether nodes and tokens are means of their cells, instead of means of their children.
        strips: "first" if an odd side begins with a narrower node, "last" if it ends with one.

    Raises:
        ValueError: an argument is out of range.
    """

    tau: float | None = None
    tau_time: float | None = None
    levels: int | None = None
    weighted: bool = False
    strips: str = "first"

    def __post_init__(self) -> None:
        for name, value in (("tau", self.tau), ("tau_time", self.tau_time)):
            if value is not None and not -1 <= value <= 1.01:
                raise ValueError(f"{name} must be a cosine in [-1, 1], got {value}")
        if self.levels is not None and self.levels < 0:
            raise ValueError(f"levels must be at least 0, got {self.levels}")
        if self.strips not in ("first", "last"):
            raise ValueError(f"strips must be 'first' or 'last', got {self.strips!r}")

    def merge(self, tokens: Tokens, count: Tensor | None = None) -> Tokens:
        """Merges tokens [B,N,C] of full frames.

        Args:
            tokens: one for each cell.
            count: int64 [B], exact number of tokens per video, in place of tau and tau_time.
        """
        if count is not None:
            # No cosine exceeds 1, so the highest threshold keeps all tokens.
            return reduce_to_budget(lambda tau: self._merge(tokens, tau, tau), count, -1.0, 1.01)
        taus = [0.85 if self.tau is None else self.tau, 0.6 if self.tau_time is None else self.tau_time]
        space, time = (torch.full((tokens.B,), tau, device=tokens.device) for tau in taus)
        return self._merge(tokens, space, time)

    def _merge(self, tokens: Tokens, tau: Tensor, tau_time: Tensor) -> Tokens:
        with torch.no_grad():
            levels = published_levels(tokens.grid) if self.levels is None else self.levels
            node, mean, part = quadtree(tokens, tau, levels, weighted=self.weighted, strips=self.strips)
            plan = Plan.group(_temporal_labels(node, mean, tokens, tau_time), tokens, tokens.N)
            # Each cell's weight in its token: its weight in the node times the node's weight in the token.
            part, _ = plan.parts(torch.ones_like(part) if self.weighted else part)
            assert plan.dest is not None
        return tokens.apply(replace(plan, shares=part))


def published_levels(grid: Grid) -> int:
    """The number of halvings until two rows or columns remain, minus one: root level 1 of the published runs."""
    halvings, height, width = 0, grid.H, grid.W
    while height > 2 and width > 2:
        halvings, height, width = halvings + 1, -(-height // 2), -(-width // 2)
    return max(0, halvings - 1)


def quadtree(
    tokens: Tokens, tau: Tensor, levels: int, *, weighted: bool = False, strips: str = "first"
) -> tuple[Tensor, Tensor, Tensor]:
    """The quadtree of each frame, per cell: its node's upper-left cell, the node's mean, and the cell's weight in it.

    Args:
        tokens: one for each cell.
        tau: [B], similarity from which a node is not split.
        levels: number of levels of the pyramid above the cells.
        weighted, strips: as in `Squares`.

    Returns:
        int64 [B,N], float32 [B,N,C] and float32 [B,N].
    """
    (B, C), (T, H, W) = (tokens.B, tokens.C), tokens.grid.shape
    below = tokens.features.float().reshape(B * T, H, W, C)
    limit = tau.repeat_interleave(T)[:, None, None]
    mean = below
    corner = torch.arange(H * W, device=below.device).reshape(H, W).expand(B * T, -1, -1)
    part = torch.ones(B * T, H, W, device=below.device)
    # Per node of a level: its cells [h,w]. Per cell: the row and column of its node, and its weight in it.
    cells = part[0]
    y, u = torch.arange(H, device=below.device), torch.arange(W, device=below.device)
    inside = part[0]
    for _ in range(levels):
        h, w = cells.shape
        if h == w == 1:
            break
        # Padding a row or column in front makes the first nodes narrower.
        before = (h % 2, w % 2) if strips == "first" else (0, 0)
        up, across = (
            (torch.arange(side, device=y.device) + extra) // 2 for side, extra in zip((h, w), before, strict=True)
        )
        children = _blocks(torch.ones_like(cells), before).sum(2)
        weight = cells if weighted else torch.ones_like(cells)
        fraction = weight / _blocks(weight, before).sum(2)[up][:, across]
        above = _blocks(below * fraction[..., None], before).sum(3)
        spread = above[:, up][:, :, across]
        similar = ~_blocks((cosine(spread, below) < limit), before).any(3)
        if strips == "first":
            similar &= (cosine(above, below[:, :1, :1].expand_as(above)) >= limit) | (children == 4)
        cells, below = _blocks(cells, before).sum(2), above
        inside = inside * fraction[y][:, u]
        y, u = (y + before[0]) // 2, (u + before[1]) // 2
        # Going up, an unsplit node replaces everything below it: from the top down it comes first.
        unsplit = similar[:, y][:, :, u]
        top, left = (torch.searchsorted(index, index) for index in (y, u))
        corner = torch.where(unsplit, top[:, None] * W + left, corner)
        mean = torch.where(unsplit[..., None], above[:, y][:, :, u], mean)
        part = torch.where(unsplit, inside, part)
    frame = torch.arange(T, device=mean.device).repeat(B)[:, None, None] * (H * W)
    return (corner + frame).reshape(B, -1), mean.reshape(B, -1, C), part.reshape(B, -1)


def _blocks(x: Tensor, before: tuple[int, int]) -> Tensor:
    """Splits [...,h,w,(C)] of numbers or flags into 2x2 blocks [...,h/2,w/2,4,(C)]; missing entries are 0.

    Args:
        x: [h,w], [F,h,w] or [F,h,w,C].
        before: number of padding rows and columns in front, 0 or 1.
    """
    first = 0 if x.ndim == 2 else 1
    h, w = x.shape[first : first + 2]
    after = ((h + before[0]) % 2, (w + before[1]) % 2)
    pad = (before[1], after[1], before[0], after[0])
    x = F.pad(x, (0, 0, *pad) if x.ndim == 4 else pad)
    x = x.unflatten(first + 1, (-1, 2)).unflatten(first, (-1, 2)).transpose(first + 1, first + 2)
    return x.flatten(first + 2, first + 3)


def _temporal_labels(node: Tensor, mean: Tensor, tokens: Tokens, tau: Tensor) -> Tensor:
    """The labels of nodes merged over time, int64 [B,N]; -1 for padding."""
    n = tokens.grid.cells_per_frame
    if tokens.grid.T == 1:
        return node.masked_fill(~tokens.mask, -1)
    before, after = node[:, :-n], node[:, n:]
    linked = (cosine(mean[:, :-n], mean[:, n:]) >= tau[:, None]) & tokens.mask[:, n:]

    def lowest(label: Tensor) -> Tensor:
        # Each cell passes the labels of its two nodes to each other.
        a, b = label.gather(1, before), label.gather(1, after)
        neighbor_label = label.scatter_reduce(1, before, torch.where(linked, b, a), "amin")
        return neighbor_label.scatter_reduce(1, after, torch.where(linked, a, b), "amin")

    return components(lowest, tokens.mask).gather(1, node).masked_fill(~tokens.mask, -1)
