"""STTM inside the language model, on handmade hidden states: tokens are at their first cells."""

from __future__ import annotations

import numpy as np
import pytest

from fewtokens.core.layer_method import PrunePoint
from fewtokens.methods.layers.sttm_inner import SttmInner
from tests.helpers.layers import COLUMNS, kept_columns, layer_state
from tests.helpers.squares import sttm_by_loops


@pytest.mark.parametrize("positions", ["keep", "average"])
@pytest.mark.parametrize(("tau", "tau_time"), [(0.9, 0.1), (0.3, 0.2), (-0.2, -0.2), (-1.0, -1.0)])
def test_against_loops(tau, tau_time, positions):
    inputs = layer_state(2)
    method = SttmInner(tau, tau_time=tau_time, levels=1, weighted=True, positions=positions)
    decision = method.choose(inputs, 0)
    for b in range(2):
        x = inputs.hidden[b].double().numpy()
        tokens = sttm_by_loops(x[COLUMNS].reshape(2, 2, 2, -1), tau, tau_time, 1, "first", True)
        assert kept_columns(decision.kept)[b] == sorted(3 + min(cells) for _, cells in tokens)
        hidden = inputs.hidden[b] if decision.hidden is None else decision.hidden[b]
        cos, sin = (part[b].double().numpy() for part in inputs.rope)
        for mean, cells in tokens:
            first, columns = 3 + min(cells), [3 + cell for cell in cells]
            np.testing.assert_allclose(hidden[first].numpy(), mean, rtol=1e-5, atol=1e-6)
            if positions == "keep":
                assert decision.rope is None
                continue
            for new, old in zip(decision.rope, (cos, sin), strict=True):
                expected = old[columns].mean(0)
                np.testing.assert_allclose(new[b, first].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_no_scores_are_required():
    assert SttmInner().prune_points(28) == [PrunePoint(2, None)]
