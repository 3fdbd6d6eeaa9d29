"""AKS on the examples of the specification, and against a recursion written from the paper."""

from __future__ import annotations

import pytest
import torch

from fewtokens.methods.selection.aks import Aks

BLOCKS = torch.tensor([0.1, 0.2, 0.1, 0.3, 0.9, 0.8, 0.95, 0.85, 0.1, 0.1, 0.2, 0.1, 0.1, 0.15, 0.1, 0.12])


def select(scores, **arguments):
    return Aks(**arguments).select(torch.arange(len(scores)), relevance=scores)


def test_a_spike_stops_at_the_root():
    scores = torch.zeros(16)
    scores[5] = 1
    selection = select(scores, keep=1)
    assert selection.index.tolist() == [5] and selection.why["parts"] == [(0, 16)]


def test_blocks():
    assert select(BLOCKS, keep=4, depth=2).index.tolist() == [3, 6, 10, 13]
    # With the quota of a part as n, 1 of its frames must stand out from it: none does here either.
    assert len(select(BLOCKS, keep=4, depth=2, stop_top="leaf_quota")) == 4


def recursion(scores, K, tau, depth):
    """Indices by the published recursion, for budgets that are powers of two."""

    def leaves(index, level):
        values = scores[index]
        top = values.sort(descending=True).values[:K].mean()
        if top - values.mean() > tau or level == depth:
            return [(index, level)]
        half = len(index) // 2
        return leaves(index[:half], level + 1) + leaves(index[half:], level + 1)

    selected = []
    for index, level in leaves(list(range(len(scores))), 0):
        selected += sorted(index, key=lambda i: -float(scores[i]))[: K // 2**level]
    return sorted(selected)


@pytest.mark.parametrize("seed", range(5))
def test_powers_of_two_are_the_published_recursion(seed):
    scores = torch.rand(256, generator=torch.Generator().manual_seed(seed)) ** 8
    scores = (scores - scores.min()) / (scores.max() - scores.min())
    for K, tau, depth in ((8, 0.8, 3), (4, 0.45, 2), (32, 0.3, 5)):
        assert select(scores, keep=K, tau=tau, depth=depth).index.tolist() == recursion(scores, K, tau, depth)


@pytest.mark.parametrize("keep", [2, 6, 7])
def test_budgets_below_the_number_of_parts_are_exact(keep):
    """K // 2^depth is 0 for them in the published code."""
    scores = torch.rand(64, generator=torch.Generator().manual_seed(0))
    selection = select(scores, keep=keep, depth=3, tau=2.0)
    best = sorted(range(8), key=lambda part: -float(scores[8 * part : 8 * part + 8].max()))[:keep]
    expected = sorted(8 * part + int(scores[8 * part : 8 * part + 8].argmax()) for part in best)
    assert selection.index.tolist() == expected


def test_equal_scores_are_spread_over_the_video():
    index = select(torch.full((320,), 0.3), keep=10).index
    assert len(index) == 10 and int(index.diff().max()) < 96


def test_arguments():
    with pytest.raises(ValueError, match="depth must be in"):
        Aks(depth=-1)
    with pytest.raises(ValueError, match="stop_top must be"):
        Aks(stop_top="x")
