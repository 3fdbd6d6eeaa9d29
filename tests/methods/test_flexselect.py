"""FlexSelect on handmade attention, against a sorted list."""

from __future__ import annotations

import pytest

from fewtokens.core.layer_method import PrunePoint
from fewtokens.methods.layers.flexselect import FlexSelect
from tests.helpers.layers import COLUMNS, kept_columns, layer_state, top_columns


@pytest.mark.parametrize(("keep", "count"), [(0.5, 4), (0.32, 2), (0.375, 3), (0.01, 1), (1.0, 8), (5, 5), (100, 8)])
def test_against_a_sorted_list(keep, count):
    """A fraction of the 8 tokens is rounded down."""
    inputs = layer_state(1)
    decision = FlexSelect(keep).choose(inputs, 0)
    assert kept_columns(decision.kept) == [top_columns(row, COLUMNS, count) for row in inputs.scores.tolist()]
    assert decision.hidden is None


def test_scores_are_from_the_reference_layer():
    assert FlexSelect().prune_points(28) == [PrunePoint(19, 19)]
    assert FlexSelect.asks == "text"
    assert (FlexSelect().pool, FlexSelect(by="mean").pool) == ("max", "mean")
