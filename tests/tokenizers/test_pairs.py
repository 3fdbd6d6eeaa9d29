"""Byte-pair encoding of grids: lossless, counts equal to brute force, the golden values of the specification."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from fewtokens.tokenizers.entropy import entropy_bits
from fewtokens.tokenizers.pairs import DIRECTIONS, count_pairs, expand_pairs, fit_pairs, merge_pairs

ALL = tuple(DIRECTIONS)


def test_golden_constant_grid():
    grid = np.full((4, 4), 7)
    pairs = fit_pairs([grid], 8, 2)
    assert pairs.tolist() == [[7, 7, 0], [8, 8, 1]]  # (7, 7, right) -> 8, (8, 8, down) -> 9
    merged = merge_pairs(grid, pairs, 8)
    assert merged.ids.tolist() == [9, 9, 9, 9]
    assert merged.token.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]


def test_overlapping_pairs_merge_in_raster_order():
    pairs = np.array([[7, 7, 0]])
    assert merge_pairs(np.full((1, 5), 7), pairs, 8).ids.tolist() == [8, 8, 7]
    down = np.array([[7, 7, 1]])
    assert merge_pairs(np.full((5, 1), 7), down, 8).ids.tolist() == [8, 8, 7]
    # Runs of boxes of two columns, which begin at odd and even columns.
    grid = np.array([[0, 1, 1, 1, 1, 1, 1]])
    two = np.array([[1, 1, 0], [8, 8, 0]])
    assert merge_pairs(grid, two, 8).ids.tolist() == [0, 9, 8]


@pytest.mark.parametrize("directions", [("right",), ("right", "down"), ALL])
def test_lossless_on_random_grids(directions):
    rng = np.random.default_rng(0)
    for _ in range(40):
        shape = tuple(rng.integers(1, 9, 3 if len(directions) == 3 else 2))
        size = int(rng.integers(1, 5))
        grids = [rng.integers(0, size, shape), rng.integers(0, size, tuple(rng.integers(1, 9, len(shape))))]
        before = [grid.copy() for grid in grids]
        pairs = fit_pairs(grids, size, 12, directions)
        held_out = rng.integers(0, size, tuple(rng.integers(1, 11, len(shape))))
        for grid in [*grids, held_out]:
            merged = merge_pairs(grid, pairs, size)
            assert np.array_equal(expand_pairs(merged.ids, grid.shape, pairs, size), grid)
            # Each token is a box of cells, and its cells are one group.
            assert np.array_equal(np.unique(merged.token), np.arange(len(merged.ids)))
        assert all(np.array_equal(grid, copy) for grid, copy in zip(grids, before, strict=True))


def brute_force(token: np.ndarray, ids: np.ndarray) -> Counter:
    """Pairs of tokens whose boxes touch along a whole side, by comparing the cells of every two tokens."""
    cells = [np.argwhere(token == n) for n in range(len(ids))]
    boxes = [(each.min(0), each.max(0) + 1) for each in cells]
    counts: Counter = Counter()
    for a, (low, high) in enumerate(boxes):
        for b, (other_low, other_high) in enumerate(boxes):
            for name, axis in DIRECTIONS.items():
                across = [n for n in range(3) if n != axis]
                same = all(low[n] == other_low[n] and high[n] == other_high[n] for n in across)
                if same and high[axis] == other_low[axis]:
                    counts[int(ids[a]), int(ids[b]), ALL.index(name)] += 1
    return counts


def test_counts_equal_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(10):
        grid = rng.integers(0, 3, (2, 4, 5))
        pairs = fit_pairs([grid], 3, 4, ALL)
        merged = merge_pairs(grid, pairs, 3)
        corners = np.full(grid.size, -1)
        first = np.unique(merged.token.flatten(), return_index=True)[1]
        corners[first] = merged.ids
        found, counts = count_pairs([corners.reshape(grid.shape)], pairs, 3, ALL)
        expected = brute_force(merged.token, merged.ids)
        assert {tuple(row): n for row, n in zip(found.tolist(), counts.tolist(), strict=True)} == dict(expected)


def test_the_most_frequent_pair_is_merged_and_the_lowest_wins_ties():
    grid = np.array([[0, 1, 2, 0, 1, 3, 2, 3, 2, 0]])
    assert fit_pairs([grid], 4, 1).tolist() == [[0, 1, 0]]  # (0, 1) and (3, 2) occur twice
    grid = np.array([[1, 0, 2, 1, 0, 3, 1, 0]])
    assert fit_pairs([grid], 4, 1).tolist() == [[1, 0, 0]]  # a pair whose first id is larger merges too
    assert fit_pairs([np.arange(6)[None]], 6, 5).tolist() == []  # nothing occurs twice


def test_bits_fall_on_structured_grids_and_not_on_noise():
    rng = np.random.default_rng(0)

    def ratio(make) -> float:
        train, test = [make() for _ in range(12)], [make() for _ in range(12)]
        pairs = fit_pairs(train, 8, 64)
        before = entropy_bits(torch.from_numpy(np.concatenate([grid.flatten() for grid in test]))[:, None])
        ids = np.concatenate([merge_pairs(grid, pairs, 8).ids for grid in test])
        return before / entropy_bits(torch.from_numpy(ids)[:, None])

    def checks() -> np.ndarray:
        """Blocks of 8 x 8 cells with checks or stripes of two ids."""
        ids = rng.integers(0, 8, (2, 2, 2)).repeat(8, 1).repeat(8, 2)
        stripes = rng.integers(0, 2, (2, 2)).repeat(8, 0).repeat(8, 1)
        row, column = np.indices((16, 16))
        return np.where((row + stripes * column) % 2, *ids)

    assert ratio(lambda: rng.integers(0, 8, (16, 16))) < 1
    assert ratio(checks) > 1.5


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0] * 5, "do not fill"),
        ([0] * 7, "fill a grid"),
        ([9] * 6, "ids must be in 0..8"),
        ([0, 0, 8, 0, 0], "overlaps"),
    ],
)
def test_damaged_ids(ids, message):
    with pytest.raises(ValueError, match=message):
        expand_pairs(ids, (2, 3), np.array([[0, 0, 0]]), 8)


def test_refusals():
    with pytest.raises(ValueError, match="no grids"):
        fit_pairs([], 8, 2)
    with pytest.raises(ValueError, match="directions must be among right, down, later, got up"):
        fit_pairs([np.zeros((2, 2))], 8, 2, ("up",))
    with pytest.raises(ValueError, match=r"ids in 0\.\.7"):
        fit_pairs([np.full((2, 2), 8)], 8, 2)
