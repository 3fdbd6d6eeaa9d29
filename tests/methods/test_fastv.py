"""FastV on hand-made attention, against a sorted list."""

from __future__ import annotations

import pytest

from fewtokens.core.layer_method import PrunePoint
from fewtokens.methods.layers.fastv import FastV
from tests.helpers.layers import COLUMNS, best, chosen, state


@pytest.mark.parametrize(("keep", "count"), [(0.5, 4), (0.3, 2), (0.32, 3), (0.01, 1), (1.0, 8), (5, 5), (100, 8)])
def test_against_a_sorted_list(keep, count):
    """A share of the 8 tokens to the nearest whole number, as published."""
    given = state()
    decision = FastV(keep).choose(given, 0)
    assert chosen(decision.kept) == [best(row, COLUMNS, count) for row in given.scores.tolist()]
    assert decision.hidden is None
    assert decision.rope is None


def test_scores_are_of_the_layer_before():
    assert FastV().prune_points(32) == [PrunePoint(2, 1)]
    assert FastV(layer=5).prune_points(32) == [PrunePoint(5, 4)]
    assert FastV.asks == "last"
    assert FastV().pool == "mean"
