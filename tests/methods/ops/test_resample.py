"""What the learned resamplers share."""

from __future__ import annotations

from fewtokens.methods.ops.resample import fitting_heads


def test_heads_divide_the_width():
    assert [fitting_heads(width, 8) for width in (12, 13, 16, 384, 4)] == [6, 1, 8, 8, 4]
