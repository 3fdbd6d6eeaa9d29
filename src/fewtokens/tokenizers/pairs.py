"""Byte-pair encoding of grids of codes: the most frequent pair of neighbors becomes a new id, again and again.

    pairs = fit_pairs(grids, size=1024, merges=256)
    ids = merge_pairs(grid, pairs, size=1024).ids  # fewer ids than cells
    expand_pairs(ids, grid.shape, pairs, size=1024)  # the same grid

A token covers a box of cells, whose shape follows from its id. Two tokens can merge if they touch along one axis and
have equal extents along the others, so that a merged token is a box too. Its first cell in raster order is its corner,
and therefore the ids in raster order determine the grid without any further information.

The paper (arXiv 2410.02155) leaves open the shapes and the order: here pairs are ordered, so that (a, b) and (b, a)
differ; the lowest left id, right id and direction win ties; and of overlapping pairs, the first in raster order merges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Directions in the order that breaks ties, and their axis in [T,H,W].
DIRECTIONS = {"right": 2, "down": 1, "later": 0}
_NAMES = tuple(DIRECTIONS)
_COVERED = -1

Ints = NDArray[np.int64]


class Merged(NamedTuple):
    """A grid after merging.

    Attributes:
        ids: int64 [N], ids of the tokens in raster order of their first cells.
        token: int64 [T,H,W], the token of each cell.
    """

    ids: Ints
    token: Ints


def fit_pairs(
    grids: Sequence[ArrayLike],
    size: int,
    merges: int,
    directions: Sequence[str] = ("right", "down"),
    *,
    progress: Callable[[int, int], object] | None = None,
) -> Ints:
    """Learns which pairs to merge.

    Args:
        grids: integers [T,H,W] or [H,W] in 0..size-1, of any sizes; not changed.
        size: number of values of a code.
        merges: largest number of new ids. There are fewer if no pair is left that occurs twice.
        directions: "right", "down" and "later", the neighbors that may merge.
        progress: receives the number of new ids and the number of tokens after each merge.

    Returns:
        int64 [merges,3]: left id, right id and index of the direction in `DIRECTIONS`; row m becomes the id size + m.

    Raises:
        ValueError: an id or a direction is invalid, or there are no grids.
    """
    if not grids:
        raise ValueError("no grids to learn pairs from")
    if unknown := [name for name in directions if name not in DIRECTIONS]:
        raise ValueError(f"directions must be among {', '.join(DIRECTIONS)}, got {', '.join(unknown)}")
    corners = [_checked(grid, size) for grid in grids]
    pairs, tokens = np.zeros((0, 3), np.int64), sum(grid.size for grid in corners)
    for _ in range(merges):
        rows, counts = count_pairs(corners, pairs, size, directions)
        if not len(counts) or counts.max() < 2:
            break
        best = rows[counts.argmax()]  # rows are sorted, so the first of equal counts is the lowest
        merged = _merge(corners, best, size + len(pairs), _extents(pairs, size))
        pairs = np.concatenate([pairs, best[None]])
        tokens -= sum(len(first) for first, _ in merged)
        if progress is not None:
            progress(len(pairs), tokens)
    return pairs


def count_pairs(
    corners: Sequence[Ints], pairs: Ints, size: int, directions: Sequence[str] = ("right", "down")
) -> tuple[Ints, Ints]:
    """Counts the pairs of tokens that could merge; overlapping ones all count.

    Args:
        corners: ids [T,H,W] at the first cell of each token, -1 elsewhere.
        pairs: int64 [m,3], the merges so far.
        size: number of values of a code.
        directions: as for `fit_pairs`.

    Returns:
        Pairs [n,3] as in `fit_pairs`, sorted, and their counts [n].
    """
    extents, total = _extents(pairs, size), size + len(pairs)
    keys = []
    for grid in corners:
        place = np.argwhere(grid >= 0)
        left = grid[tuple(place.T)]
        for name in directions:
            axis = DIRECTIONS[name]
            other = place.copy()
            other[:, axis] += extents[left, axis]
            inside = other[:, axis] < grid.shape[axis]
            right = grid[tuple(other[inside].T)]
            lefts = left[inside]
            across = [each for each in range(3) if each != axis]
            fits = (right >= 0) & (extents[right][:, across] == extents[lefts][:, across]).all(1)
            keys.append((lefts[fits] * total + right[fits]) * len(_NAMES) + _NAMES.index(name))
    key, counts = np.unique(np.concatenate(keys), return_counts=True)
    left_right, direction = np.divmod(key, len(_NAMES))
    return np.stack([*np.divmod(left_right, total), direction], 1), counts


def merge_pairs(grid: ArrayLike, pairs: Ints, size: int) -> Merged:
    """Merges the pairs of a grid, in the order in which they were learned.

    Args:
        grid: integers [T,H,W] or [H,W] in 0..size-1; not changed.
        pairs: the result of `fit_pairs`.
        size: number of values of a code.

    Raises:
        ValueError: an id is out of range.
    """
    corners = _checked(grid, size)
    owner = np.arange(corners.size)
    extents = _extents(pairs, size)
    for number, pair in enumerate(pairs):
        for first, second in _merge([corners], pair, size + number, extents):
            moved = np.arange(corners.size)
            moved[second] = first
            owner = moved[owner]
    is_token = corners.flatten() >= 0
    token = (np.cumsum(is_token) - 1)[owner]
    shape = np.shape(grid)
    return Merged(corners[corners >= 0], token.reshape(shape))


def expand_pairs(ids: ArrayLike, shape: Sequence[int], pairs: Ints, size: int) -> Ints:
    """Returns the grid of merged ids; the inverse of `merge_pairs`.

    Args:
        ids: integers [N] in 0..size+m-1.
        shape: T, H and W, or H and W.
        pairs, size: as for `merge_pairs`.

    Raises:
        ValueError: the ids do not fill the grid exactly.
    """
    boxes: list[Ints] = []
    for left, right, direction in pairs.tolist():
        parts = [boxes[each - size] if each >= size else np.full((1, 1, 1), each) for each in (left, right)]
        boxes.append(np.concatenate(parts, DIRECTIONS[_NAMES[direction]]))
    T, H, W = (1, *shape) if len(shape) == 2 else shape
    grid = np.full((T, H, W), _COVERED)
    flat, covered, cell = grid.reshape(-1), bytearray(T * H * W), -1
    # The place of a token depends on all earlier ones, so this is a loop; each step is a search in C.
    for each in np.asarray(ids, np.int64).tolist():
        cell = covered.find(0, cell + 1)
        if cell < 0 or not 0 <= each < size + len(boxes):
            raise ValueError(f"ids must be in 0..{size + len(boxes) - 1} and fill a grid of {T}x{H}x{W}")
        if each < size:
            flat[cell] = each
            covered[cell] = 1
            continue
        box = boxes[each - size]
        t, y, x = cell // (H * W), cell // W % H, cell % W
        place = grid[t : t + box.shape[0], y : y + box.shape[1], x : x + box.shape[2]]
        if place.shape != box.shape or (place != _COVERED).any():
            raise ValueError(f"ids do not fill a grid of {T}x{H}x{W}: a token overlaps another or the edge")
        place[...] = box
        for row in range(cell, cell + box.shape[0] * H * W, H * W):
            for start in range(row, row + box.shape[1] * W, W):
                covered[start : start + box.shape[2]] = b"\1" * box.shape[2]
    if covered.find(0) >= 0:
        raise ValueError(f"{np.size(ids)} ids do not fill a grid of {T}x{H}x{W}")
    return grid.reshape(tuple(shape))


def _merge(corners: Sequence[Ints], pair: Ints, new: int, extents: Ints) -> list[tuple[Ints, Ints]]:
    """Merges a pair in place; returns the flat indices of the first and second tokens of the merged ones by grid."""
    left, right, direction = pair.tolist()
    axis = DIRECTIONS[_NAMES[direction]]
    step = int(extents[left, axis])
    merged = []
    for grid in corners:
        line = np.moveaxis(grid, axis, -1)
        match = np.zeros(line.shape, bool)
        match[..., :-step] = (line[..., :-step] == left) & (line[..., step:] == right)
        if left == right:
            match = _every_other(match, step)
        first = np.flatnonzero(np.moveaxis(match, -1, axis))
        second = first + step * int(np.prod(grid.shape[axis + 1 :]))
        flat = grid.reshape(-1)
        flat[first], flat[second] = new, _COVERED
        merged.append((first, second))
    return merged


def _every_other(match: NDArray[np.bool_], step: int) -> NDArray[np.bool_]:
    """Keeps the first, third, ... of each run of matches at a distance of `step` along the last axis."""
    length = match.shape[-1]
    padded = np.pad(match, [(0, 0)] * (match.ndim - 1) + [(0, -length % step)])
    runs = np.moveaxis(padded.reshape(*match.shape[:-1], -1, step), -2, -1)
    index = np.arange(runs.shape[-1])
    last_break = np.maximum.accumulate(np.where(runs, -1, index), -1)
    kept = runs & ((index - last_break) % 2 == 1)
    return np.moveaxis(kept, -1, -2).reshape(padded.shape)[..., :length]


def _extents(pairs: Ints, size: int) -> Ints:
    """Frames, rows and columns of the box of each id, int64 [size+m,3]."""
    extents = np.ones((size + len(pairs), 3), np.int64)
    for number, (left, right, direction) in enumerate(pairs.tolist()):
        axis = DIRECTIONS[_NAMES[direction]]
        extents[size + number] = extents[left]
        extents[size + number, axis] += extents[right, axis]
    return extents


def _checked(grid: ArrayLike, size: int) -> Ints:
    """A copy of a grid, [T,H,W]."""
    array = np.array(grid, np.int64)
    if array.ndim not in (2, 3) or not array.size or array.min() < 0 or array.max() >= size:
        raise ValueError(f"grids must be [T,H,W] or [H,W] with ids in 0..{size - 1}, got {list(array.shape)}")
    return array[None] if array.ndim == 2 else array
