"""A quadtree of each frame whose nodes merge over time: the computation of STTM (arXiv 2507.07990)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.plan import Plan, take_rows
from fewtokens.core.shapes import shape_repr
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.bipartite import merge_to
from fewtokens.methods.ops.components import components, lowest_over
from fewtokens.methods.ops.search import find_threshold

# Frames are compared in blocks of at most this many entries (4 MiB in float32), which stay in the cache.
_MAX_BLOCK_ENTRIES = 1 << 20

# The resolution of the threshold that fits a budget. A count at one threshold costs far less than merging in pairs,
# which 2**16 steps spare in a video of 25,000 cells: the threshold itself leaves the exact count.
_HALVINGS = 16


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
        levels = published_levels(tokens.grid) if self.levels is None else self.levels
        with torch.no_grad():
            tree = Quadtree.measure(tokens, Layout(tokens.grid, levels, self.weighted, self.strips))
            if count is None:
                taus = [0.85 if self.tau is None else self.tau, 0.6 if self.tau_time is None else self.tau_time]
                space, time = (torch.full((tokens.B,), tau, device=tokens.device) for tau in taus)
            else:
                # No cosine exceeds 1, so the highest threshold keeps all tokens.
                space = time = find_threshold(
                    lambda tau, _: tree.count(tau, tau), count, tokens.count, -1.0, 1.01, halvings=_HALVINGS
                )
            plan = tree.plan(tokens, space, time)
        merged = tokens.apply(plan)
        return merged if count is None else merged.apply(merge_to(merged, count))


def published_levels(grid: Grid) -> int:
    """The number of halvings until two rows or columns remain, minus one: root level 1 of the published runs."""
    halvings, height, width = 0, grid.H, grid.W
    while height > 2 and width > 2:
        halvings, height, width = halvings + 1, -(-height // 2), -(-width // 2)
    return max(0, halvings - 1)


@dataclass(frozen=True)
class Layout:
    """The quadtree of a frame, whose cells are ordered so that the four children of each node follow each other.

    A node of level l has 4**l places for cells; those outside the frame are empty. Level 0 consists of the cells.

    Args:
        grid: the grid of the video.
        levels: halvings of the frame up to the coarsest nodes; fewer if one node covers the frame.
        weighted, strips: as in `Squares`.
    """

    grid: Grid
    levels: int
    weighted: bool
    strips: str

    @cached_property
    def _places(self) -> tuple[Tensor, int, int]:
        """The place of each cell, int64 [H,W], the number of places of a frame, and that of levels."""
        h, w = self.grid.H, self.grid.W
        y, x = torch.arange(h)[:, None], torch.arange(w)
        place, level = torch.zeros(h, w, dtype=torch.int64), 0
        while level < self.levels and max(h, w) > 1:
            # A row or column of empty places in front makes the first nodes narrower.
            y, x = (y + h % 2, x + w % 2) if self.strips == "first" else (y, x)
            place = place + (2 * (y % 2) + x % 2) * 4**level
            y, x, h, w, level = y // 2, x // 2, -(-h // 2), -(-w // 2), level + 1
        return place + (y * w + x) * 4**level, h * w * 4**level, level

    @property
    def size(self) -> int:
        """The number Z of places of a frame."""
        return self._places[1]

    @property
    def depth(self) -> int:
        """The number L of levels above the cells."""
        return self._places[2]

    def places(self) -> Tensor:
        """The place of each cell of a frame, int64 [n]."""
        return self._places[0].flatten()

    def cells(self) -> tuple[Tensor, Tensor]:
        """The cell of each place, int64 [Z] (0 for empty places), and which places are not empty, bool [Z]."""
        cell = torch.zeros(self.size, dtype=torch.int64)
        filled = torch.zeros(self.size, dtype=torch.bool)
        cell[self.places()] = torch.arange(len(self.places()))
        filled[self.places()] = True
        return cell, filled

    def fractions(self) -> list[Tensor]:
        """The weight of each child in the mean of its parent, by level of the parent: float32 [Z/4**l,4]."""
        weight = self.cells()[1].float()
        out = []
        for _ in range(self.depth):
            children = weight.unflatten(0, (-1, 4))
            total = children.sum(1, keepdim=True)
            out.append(children / total.clamp(min=1))
            weight = total.squeeze(1) if self.weighted else (total.squeeze(1) > 0).float()
        return out

    def parts(self) -> Tensor:
        """The weight of each place in its node of each level, float32 [L+1,Z]."""
        parts = [self.cells()[1].float()]
        for level, fraction in enumerate(self.fractions()):
            parts.append(parts[-1] * fraction.flatten().repeat_interleave(4**level))
        return torch.stack(parts)


@dataclass(frozen=True)
class Quadtree:
    """The similarities of all nodes of a video, from which its tokens at any threshold follow.

    Attributes:
        layout: places and levels.
        merits: float32 [B,T,L,Z], at the places of the nodes of each level above the cells: the threshold up to which
            the node is not split.
        links: float32 [B,T-1,Z,(L+1)**2], at each place: the cosine of its node of level a and its node of level b in
            the next frame, at a * (L+1) + b.
        mask: bool [B,T,Z], places of real cells.
    """

    layout: Layout
    merits: Tensor
    links: Tensor
    mask: Tensor

    __repr__ = shape_repr

    @staticmethod
    def measure(tokens: Tokens, layout: Layout) -> Quadtree:
        """Computes all similarities of a video with one token for each cell, in blocks of frames."""
        (B, N, C), T, Z = tokens.features.shape, tokens.grid.T, layout.size
        cell, filled = (values.to(tokens.device) for values in layout.cells())
        fractions = [fraction.to(tokens.device) for fraction in layout.fractions()]
        frames = max(1, _MAX_BLOCK_ENTRIES // (B * Z * C))
        first = int(layout.places()[0])
        merits, links, before = [], [], None
        for start in range(0, T, frames):
            stop = min(T, start + frames)
            index = (torch.arange(start, stop, device=cell.device)[:, None] * (N // T) + cell).flatten()
            rows = take_rows(tokens.features, index.expand(B, -1)).float().unflatten(1, (stop - start, Z))
            nodes = [_Nodes.of(rows)]
            block = []
            for level, fraction in enumerate(fractions, start=1):
                children = nodes[-1]
                nodes.append(_Nodes.of(fraction[:, None].matmul(children.mean.unflatten(2, (-1, 4))).squeeze(3)))
                similar = _cosine(children, nodes[-1]).unflatten(2, (-1, 4)).masked_fill(fraction == 0, 2)
                merit = similar.amin(3)
                if layout.strips == "first":
                    # The published code compares the first node of the level in place of missing children.
                    at = first // 4 ** (level - 1)
                    corner = _Nodes(children.mean[:, :, at : at + 1], children.norm[:, :, at : at + 1])
                    merit = torch.where((fraction > 0).all(1), merit, merit.minimum(_cosine(nodes[-1], corner)))
                block.append(merit.repeat_interleave(4**level, 2))
            merits.append(torch.stack(block, 2) if block else rows.new_zeros(B, stop - start, 0, Z))
            if before is not None:
                links.append(_links(before, [level.frames(0, 1) for level in nodes]))
            links.append(_links([level.frames(0, -1) for level in nodes], [level.frames(1, None) for level in nodes]))
            before = [level.frames(-1, None) for level in nodes]
        mask = tokens.mask.unflatten(1, (T, -1))[..., :1] & filled
        return Quadtree(layout, torch.cat(merits, 1), torch.cat(links, 1), mask)

    def _labels(self, tau: Tensor, tau_time: Tensor) -> tuple[Tensor, Tensor]:
        """The label of the token of each place, int64 [B,T*Z], and the level of its node, int64 [B,T,Z]."""
        B, T, Z = self.mask.shape
        level = torch.zeros(B, T, Z, dtype=torch.int64, device=self.mask.device)
        # Going up, an unsplit node replaces everything below it.
        for index in range(self.layout.depth):
            level = level.masked_fill(self.merits[:, :, index] >= tau[:, None, None], index + 1)
        place = torch.arange(T * Z, device=level.device).unflatten(0, (T, Z))
        node = (place >> (2 * level) << (2 * level)).flatten(1)
        if T == 1:
            return node, level
        pair = level[:, :-1] * (self.layout.depth + 1) + level[:, 1:]
        linked = self.links.gather(3, pair[..., None]).squeeze(3) >= tau_time[:, None, None]
        linked = (linked & self.mask[:, 1:]).flatten(1)
        # Each place links its two nodes.
        lowest = lowest_over(node[:, :-Z], node[:, Z:], linked)
        return components(lowest, torch.ones_like(self.mask).flatten(1)).gather(1, node), level

    def count(self, tau: Tensor, tau_time: Tensor) -> Tensor:
        """The number of tokens at thresholds [B], int64 [B]."""
        label, _ = self._labels(tau, tau_time)
        mask = self.mask.flatten(1)
        used = torch.zeros_like(label).scatter_reduce_(1, label, mask.long(), "amax")
        return used.sum(1)

    def plan(self, tokens: Tokens, tau: Tensor, tau_time: Tensor) -> Plan:
        """The tokens at thresholds [B] as a plan."""
        T, Z = self.mask.shape[1:]
        label, level = self._labels(tau, tau_time)
        part = self.layout.parts().to(level.device)[level, torch.arange(Z, device=level.device)].flatten(1)
        place = torch.arange(T, device=level.device)[:, None] * Z + self.layout.places().to(level.device)
        place = place.flatten().expand(tokens.B, -1)
        plan = Plan.group(label.gather(1, place), tokens, T * Z)
        # Each cell's weight in its token: its weight in the node times the node's weight in the token.
        part = part.gather(1, place) * tokens.mask
        share, _ = plan.parts(tokens.mask.float() if self.layout.weighted else part)
        return replace(plan, shares=share)


@dataclass(frozen=True)
class _Nodes:
    """The means of nodes [B,F,M,C] and their lengths [B,F,M]."""

    mean: Tensor
    norm: Tensor

    __repr__ = shape_repr

    @staticmethod
    def of(mean: Tensor) -> _Nodes:
        return _Nodes(mean, mean.norm(dim=3))

    def frames(self, start: int, stop: int | None) -> _Nodes:
        return _Nodes(self.mean[:, start:stop], self.norm[:, start:stop])


def _cosine(a: _Nodes, b: _Nodes) -> Tensor:
    """The cosine of each node with the node of the other level that contains it or that it contains.

    Zero vectors equal each other and are dissimilar to everything else.

    Returns:
        [B,F,M], at the nodes of the finer level.
    """
    if a.mean.shape[2] < b.mean.shape[2]:
        a, b = b, a
    M = b.mean.shape[2]
    product = (a.mean.unflatten(2, (M, -1)) * b.mean.unsqueeze(3)).sum(4)
    a_norm, b_norm = a.norm.unflatten(2, (M, -1)), b.norm.unsqueeze(3)
    similarity = (product / (a_norm * b_norm).clamp(min=1e-30)).clamp(-1, 1)
    return similarity.masked_fill((a_norm == 0) & (b_norm == 0), 1.0).flatten(2)


def _links(before: list[_Nodes], after: list[_Nodes]) -> Tensor:
    """The cosines of nodes of all levels of frames and of the frames after them, [B,F,Z,(L+1)**2] at each place."""
    size = before[0].mean.shape[2]
    pairs = [_cosine(a, b) for a in before for b in after]
    return torch.stack([pair.repeat_interleave(size // pair.shape[2], 2) for pair in pairs], 3)
