"""Uniform positions against exact fractions."""

from __future__ import annotations

from fractions import Fraction

import pytest

from fewtokens.methods.baselines.uniform import Uniform
from tests.helpers.clips import clip


@pytest.mark.parametrize("count", [1, 2, 7, 30, 59, 119, 120])
def test_the_middle_of_each_interval(count):
    tokens = clip(4, 5, 6)
    expected = [int((i + Fraction(1, 2)) * Fraction(120, count)) for i in range(count)]
    out = Uniform(count)(tokens)
    assert out.cell.tolist() == [expected] * 2
    assert out.features[0].tolist() == tokens.features[0, expected].tolist()


def test_each_video_uses_its_own_length():
    out = Uniform(0.5)(clip(4, 1, 2, lengths=[4, 2]))
    assert out.cell[0, :4].tolist() == [1, 3, 5, 7]
    assert out.cell[1, :2].tolist() == [1, 3]
    assert out.count.tolist() == [4, 2]
