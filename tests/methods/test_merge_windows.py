"""Merging within windows, against loops."""

from __future__ import annotations

import itertools

import pytest
import torch

from fewtokens.core import registry
from fewtokens.methods.ops.windows import window_index
from tests.helpers import naive
from tests.helpers.naive import video


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("keep", [0.5, 0.2, 0.06])
@pytest.mark.parametrize("window", [2, 3, 7])
def test_against_loops(keep, seed, window):
    tokens, x = video(H=5, W=6, seed=seed)
    (method,) = registry.build(f"merge_windows({keep}, window={window})")
    out = method(tokens)
    # The largest count per window that fits the budget, at least 1.
    sides = [[min(window, side - start) for start in range(0, side, window)] for side in (5, 6)]
    window_sizes = [a * b for a, b in itertools.product(*sides)]
    fits = [k for k in range(1, window**2 + 1) if 6 * sum(min(k, n) for n in window_sizes) <= int(keep * 6 * 30 + 1e-6)]
    naive.assert_same_tokens(out, naive.merge_windows(x, max(fits, default=1), window))
    # The planned count is exact.
    assert method.planned_count(tokens.grid) == out.N


def test_a_rounding_error_does_not_change_the_window():
    """A mean of positions that are all 3 may be 2.9999998."""
    tokens, _ = video(H=5, W=6)
    below = tokens.positions.nextafter(torch.tensor(-1.0)) * tokens.mask[..., None]
    above = tokens.positions.nextafter(torch.tensor(9.0)) * tokens.mask[..., None]
    expected = window_index(tokens, 3)
    for positions in (below, above):
        assert torch.equal(window_index(tokens.replace(positions=positions), 3), expected)
