"""Merging by blocks of the grid, shared by the pooling baselines."""

from __future__ import annotations

import math

import torch

from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens


def merge_blocks(tokens: Tokens, shapes: list[tuple[int, int, int]]) -> Plan:
    """Merges each video's grid to a smaller grid of T' x H' x W' blocks.

    Cells are assigned to blocks without overlap (cell y to block floor(y*H'/H)), so each cell is counted once and
    `assignment` is exact; bilinear or adaptive pooling would share cells between blocks at non-integer ratios.

    Args:
        tokens: the tokens to merge.
        shapes: (T',H',W') of each video, no larger than its grid.
    """
    blocks = torch.tensor(shapes, device=tokens.device)[:, None]  # [B,1,3]
    grids = [grid.shape for grid in tokens.grid.videos(tokens.B)]
    cells = torch.tensor(grids, device=tokens.device)[:, None]
    t, y, x = (tokens.positions.round().long() * blocks // cells).unbind(2)
    labels = (t * blocks[..., 1] + y) * blocks[..., 2] + x
    slots = max(math.prod(shape) for shape in shapes)
    return Plan.group(labels, tokens, slots, num_slots=min(slots, tokens.N))


def shrink_shape(shape: tuple[int, ...], budget: int) -> tuple[int, ...]:
    """The coarser shape of at most `budget` cells whose axes are shrunk by about the same factor."""
    factor = (budget / math.prod(shape)) ** (1 / len(shape))
    small = [max(1, int(n * factor + 1e-6)) for n in shape]
    # A short axis cannot go below 1, which can exceed the budget; then shorten the longest axis.
    while math.prod(small) > budget:
        small[small.index(max(small))] -= 1
    while True:
        # Spend the remaining budget on the axis that shrank most.
        axis = -1
        for candidate, n in enumerate(shape):
            grown = math.prod(small) // small[candidate] * (small[candidate] + 1)
            fits = small[candidate] < n and grown <= budget
            if fits and (axis < 0 or small[candidate] / n < small[axis] / shape[axis]):
                axis = candidate
        if axis < 0:
            return tuple(small)
        small[axis] += 1


def window_shape(shape: tuple[int, int, int], budget: int) -> tuple[int, int, int]:
    """The frames, rows and columns of windows that split a grid of this shape into at most `budget` windows."""
    frames, rows, columns = (-(-n // small) for n, small in zip(shape, shrink_shape(shape, budget), strict=True))
    return frames, rows, columns


def num_windows(shape: tuple[int, int, int], window: tuple[int, int, int]) -> tuple[int, int, int]:
    """The number of windows along each axis; windows that extend past the end are included."""
    frames, rows, columns = (-(-n // side) for n, side in zip(shape, window, strict=True))
    return frames, rows, columns
