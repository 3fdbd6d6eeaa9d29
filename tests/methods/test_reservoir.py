"""A random sample of the frames."""

from __future__ import annotations

import torch

from fewtokens.methods.memory.reservoir import Reservoir
from tests.helpers.frames import stream


def test_every_frame_is_equally_likely():
    counts = torch.zeros(40)
    for seed in range(60):
        frames = Reservoir(10, seed=seed)(stream(40)).positions[0, :, 0].long()
        assert len(set(frames.tolist())) == 10
        counts[frames] += 1
    # 60 trials of probability 1/4: mean 15, standard deviation 3.4.
    assert bool((counts > 15 - 4 * 3.4).all()) and bool((counts < 15 + 4 * 3.4).all())
    assert abs(float(counts[:20].sum()) - 300) < 4 * 11


def test_seeds_give_different_samples():
    first, second = (Reservoir(5, seed=seed)(stream(40)).positions[0, :, 0].tolist() for seed in (0, 1))
    assert first != second
