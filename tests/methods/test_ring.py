"""The last frames of a stream."""

from __future__ import annotations

import torch

from fewtokens.methods.memory.ring import Ring
from tests.helpers.frames import stream


def test_the_last_frames():
    tokens = stream(10)
    out = Ring(4)(tokens)
    assert torch.equal(out.features, tokens.features[:, 6:])
    assert out.assignment.tolist() == [[-1] * 6 + [0, 1, 2, 3]]
    assert out.positions[0, :, 0].tolist() == [6, 7, 8, 9]
    assert out.meta["forgotten"] == [6]
    read = Ring(4).read(Ring(4).push(tokens))
    assert read.grid.times.tolist() == [3, 3.5, 4, 4.5]
