"""Every frame, then every 2nd, every 4th."""

from __future__ import annotations

import pytest

from fewtokens.methods.memory.halving import Halving
from tests.helpers.frames import stream


@pytest.mark.parametrize(("frames", "held"), [(4, [0, 1, 2, 3]), (10, [0, 4, 8]), (17, [0, 8, 16])])
def test_frames(frames, held):
    out = Halving(4)(stream(frames))
    assert out.positions[0, :, 0].tolist() == held
    assert out.sizes.tolist() == [[1.0] * len(held)]
