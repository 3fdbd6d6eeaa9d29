"""Full frames, and the rest of the budget in the last one, against loops."""

from __future__ import annotations

import math

import pytest

from fewtokens.methods.baselines.fewer_frames import FewerFrames
from tests.helpers.clips import clip


@pytest.mark.parametrize("count", [1, 5, 12, 13, 24, 31, 60, 84])
def test_against_loops(count):
    tokens = clip(7, 3, 4, B=1)
    num_frames = math.ceil(count / 12)
    frames = [int((i + 0.5) * 7 / num_frames) for i in range(num_frames)]
    # In the last frame, the positions whose multiples of the golden ratio have the smallest fractional parts.
    spread = sorted(range(12), key=lambda n: n * (math.sqrt(5) - 1) / 2 % 1)[: count - 12 * (num_frames - 1)]
    expected = [12 * t + position for t in frames[:-1] for position in range(12)]
    expected += [12 * frames[-1] + position for position in spread]
    assert FewerFrames(count)(tokens).cell[0].tolist() == sorted(expected)


def test_each_video_uses_its_own_length():
    out = FewerFrames(0.5)(clip(8, 1, 2, lengths=[8, 4]))
    assert sorted(set(out.frame[0].tolist())) == [1, 3, 5, 7]
    assert sorted(set(out.frame[1, :4].tolist())) == [1, 3]
