"""METok against loops."""

from __future__ import annotations

import pytest

from fewtokens.core import registry
from tests.helpers import naive
from tests.helpers.naive import video


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("keep", [0.5, 0.2, 0.06])
@pytest.mark.parametrize("budget", [True, False])
def test_against_loops(keep, seed, budget):
    tokens, x = video(T=9, seed=seed)
    spec = f"keep={keep}, " if budget else ""
    (method,) = registry.build(f"metok({spec}events=3, key_events=1, key_frames=2)")
    target = method.planned_count(tokens.grid)
    naive.assert_same_tokens(method(tokens), naive.metok(x, target, 3, 1, 2))
