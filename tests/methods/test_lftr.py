"""LFTR against loops."""

from __future__ import annotations

import pytest

from fewtokens.core import registry
from tests.helpers import naive
from tests.helpers.naive import num_kept_frames, video


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("keep", [0.5, 0.2, 0.06])
@pytest.mark.parametrize("time", [0.0, 0.5, 1.0])
def test_against_loops(keep, seed, time):
    tokens, x = video(seed=seed)
    (method,) = registry.build(f"lftr({keep}, time={time})")
    target = int(keep * 120 + 1e-6)
    naive.assert_same_tokens(method(tokens), naive.lftr(x, target, num_kept_frames(target, time)))
