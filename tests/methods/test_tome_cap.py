"""ToMe over frames."""

from __future__ import annotations

import pytest

from fewtokens.methods.memory.tome_cap import ToMeCap
from tests.helpers.frames import angles, at_angles


def test_similar_frames_far_apart_are_merged():
    # In the order of time, 0, 90 and 140 find a match among 40, 2 and 91. The best pairs are 90, 91 and 0, 2.
    out = ToMeCap(4, recent=2)(at_angles(0, 40, 90, 2, 140, 91))
    assert angles(out) == [40, 1, 90.5, 140]
    assert out.sizes.tolist() == [[1, 2, 2, 1]]
    # Slots are ordered by their mean second. Only frames 0 and 5 lie within the span of one slot alone.
    assert out.meta["spans"] == [[[1, 1], [0, 3], [2, 5], [4, 4]]]
    assert out.assignment.tolist() == [[1, -1, -1, -1, -1, 2]]
    assert out.meta["forgotten"] == [4]


def test_arguments():
    with pytest.raises(ValueError, match="recent must be at most cap=4, got 5"):
        ToMeCap(4, recent=5)
