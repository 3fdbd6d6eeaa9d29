"""HoliTom's inner part on handmade hidden states, token by token."""

from __future__ import annotations

import numpy as np
import pytest

from fewtokens.core.layer_method import PrunePoint
from fewtokens.methods.layers.holitom_inner import HoliTomInner
from tests.helpers.layers import COLUMNS, kept_columns, layer_state, top_columns
from tests.helpers.naive import cosine


@pytest.mark.parametrize("merge", ["sequential", "mean", "drop"])
@pytest.mark.parametrize(("keep", "count"), [(0.5, 4), (0.3, 2), (1, 1), (1.0, 8)])
def test_against_loops(merge, keep, count):
    inputs = layer_state()
    decision = HoliTomInner(keep, merge=merge).choose(inputs, 0)
    survivors = [top_columns(row, COLUMNS, count) for row in inputs.scores.tolist()]
    assert kept_columns(decision.kept) == survivors
    if merge == "drop" or count == 8:
        assert decision.hidden is None
        return
    for b, targets in enumerate(survivors):
        x = inputs.hidden[b].double().numpy()
        expected, members = x.copy(), {column: [x[column]] for column in targets}
        for column in COLUMNS:
            if column not in targets:
                target = max(targets, key=lambda other: cosine(x[column], x[other]))
                expected[target] = (expected[target] + x[column]) / 2
                members[target].append(x[column])
        if merge == "mean":
            for column in targets:
                expected[column] = np.mean(members[column], 0)
        # Dropped tokens and text tokens keep their hidden states.
        np.testing.assert_allclose(decision.hidden[b].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_scores_are_from_the_previous_layer():
    assert HoliTomInner().prune_points(28) == [PrunePoint(18, 17)]
