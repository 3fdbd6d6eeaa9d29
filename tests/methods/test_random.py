"""Random positions against integers computed in pure Python."""

from __future__ import annotations

import pytest

from fewtokens.methods.baselines.random import Random
from tests.helpers.clips import clip
from tests.helpers.naive import uniform_hash


@pytest.mark.parametrize("seed", [0, 1, 7, 2**32 - 1])
@pytest.mark.parametrize(("keep", "count"), [(0.25, 30), (1, 1), (119, 119)])
def test_positions_with_the_highest_hashes(seed, keep, count):
    hashes = uniform_hash(seed, 120)
    expected = sorted(sorted(range(120), key=lambda n: -hashes[n])[:count])
    assert Random(keep, seed=seed)(clip(4, 5, 6)).cell.tolist() == [expected] * 2


@pytest.mark.parametrize(
    ("seed", "positions"), [(0, [16, 40, 52, 54, 60, 69, 85, 116]), (7, [8, 22, 23, 26, 37, 62, 87, 110])]
)
def test_eight_positions(seed, positions):
    assert Random(8, seed=seed)(clip(4, 5, 6, B=1)).cell[0].tolist() == positions
