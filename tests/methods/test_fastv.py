"""FastV on handmade attention, against a sorted list."""

from __future__ import annotations

import pytest

from fewtokens.core.layer_method import PrunePoint
from fewtokens.methods.layers.fastv import FastV
from tests.helpers.layers import COLUMNS, kept_columns, layer_state, top_columns


@pytest.mark.parametrize(("keep", "count"), [(0.5, 4), (0.3, 2), (0.32, 3), (0.01, 1), (1.0, 8), (5, 5), (100, 8)])
def test_against_a_sorted_list(keep, count):
    """A fraction of the 8 tokens is rounded to the nearest count, as published."""
    inputs = layer_state()
    decision = FastV(keep).choose(inputs, 0)
    assert kept_columns(decision.kept) == [top_columns(row, COLUMNS, count) for row in inputs.scores.tolist()]
    assert decision.hidden is None
    assert decision.rope is None


def test_scores_are_from_the_previous_layer():
    assert FastV().prune_points(32) == [PrunePoint(2, 1)]
    assert FastV(layer=5).prune_points(32) == [PrunePoint(5, 4)]
    assert FastV.asks == "last"
    assert FastV().pool == "mean"
