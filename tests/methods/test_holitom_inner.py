"""HoliTom's inner part on hand-made hidden states, one token after another."""

from __future__ import annotations

import numpy as np
import pytest

from fewtokens.core.layer_method import PrunePoint
from fewtokens.methods.layers.holitom_inner import HoliTomInner
from tests.helpers.layers import COLUMNS, best, chosen, state
from tests.helpers.naive import cosine


@pytest.mark.parametrize("merge", ["sequential", "mean", "drop"])
@pytest.mark.parametrize(("keep", "count"), [(0.5, 4), (0.3, 2), (1, 1), (1.0, 8)])
def test_against_loops(merge, keep, count):
    given = state()
    decision = HoliTomInner(keep, merge=merge).choose(given, 0)
    kept = [best(row, COLUMNS, count) for row in given.scores.tolist()]
    assert chosen(decision.kept) == kept
    if merge == "drop" or count == 8:
        assert decision.hidden is None
        return
    for b, stays in enumerate(kept):
        x = given.hidden[b].double().numpy()
        expected, members = x.copy(), {column: [x[column]] for column in stays}
        for column in COLUMNS:
            if column not in stays:
                into = max(stays, key=lambda other: cosine(x[column], x[other]))
                expected[into] = (expected[into] + x[column]) / 2
                members[into].append(x[column])
        if merge == "mean":
            for column in stays:
                expected[column] = np.mean(members[column], 0)
        # What goes keeps its hidden state, and words keep theirs.
        np.testing.assert_allclose(decision.hidden[b].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_scores_are_of_the_layer_before():
    assert HoliTomInner().prune_points(28) == [PrunePoint(18, 17)]
