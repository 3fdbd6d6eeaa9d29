"""Merging by blocks of the grid, shared by the two pooling baselines."""

from __future__ import annotations

import math

import torch

from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens


def merge_blocks(tokens: Tokens, shapes: list[tuple[int, int, int]]) -> Plan:
    """Merges each video's grid to a smaller one of T' x H' x W' blocks.

    Cells are dealt to blocks without overlap (cell y goes to block floor(y*H'/H)), so that each cell counts
    once and `source` is exact; bilinear or adaptive pooling would share cells at odd ratios.

    Args:
        shapes: (T',H',W') of each video, none larger than its grid.
    """
    blocks = torch.tensor(shapes, device=tokens.device)[:, None]  # [B,1,3]
    grids = [grid.shape for grid in tokens.grid.videos(tokens.B)]
    cells = torch.tensor(grids, device=tokens.device)[:, None]
    place = tokens.positions.round().long() * blocks // cells
    t, y, x = place.unbind(2)
    labels = (t * blocks[..., 1] + y) * blocks[..., 2] + x
    slots = max(math.prod(shape) for shape in shapes)
    return Plan.group(labels, tokens, slots, num_slots=min(slots, tokens.N))


def shrink(shape: tuple[int, ...], budget: int) -> tuple[int, ...]:
    """The coarser shape of at most `budget` cells whose axes are shrunk by about the same factor."""
    factor = (budget / math.prod(shape)) ** (1 / len(shape))
    small = [max(1, int(n * factor + 1e-6)) for n in shape]
    # A short axis cannot go below 1, which overshoots the budget: shorten the longest one then.
    while math.prod(small) > budget:
        small[small.index(max(small))] -= 1
    while True:
        # Give what is left of the budget to the axis that is shrunk most.
        axis = -1
        for each, n in enumerate(shape):
            grown = math.prod(small) // small[each] * (small[each] + 1)
            fits = small[each] < n and grown <= budget
            if fits and (axis < 0 or small[each] / n < small[axis] / shape[axis]):
                axis = each
        if axis < 0:
            return tuple(small)
        small[axis] += 1


def window_for(shape: tuple[int, int, int], budget: int) -> tuple[int, int, int]:
    """Frames, rows and columns of windows that cut a grid of this shape into at most `budget` of them."""
    frames, rows, columns = (-(-n // small) for n, small in zip(shape, shrink(shape, budget), strict=True))
    return frames, rows, columns


def windows_of(shape: tuple[int, int, int], window: tuple[int, int, int]) -> tuple[int, int, int]:
    """How many windows lie along each axis; those that reach past the end count."""
    frames, rows, columns = (-(-n // side) for n, side in zip(shape, window, strict=True))
    return frames, rows, columns
