"""Random frames are seeded, and each is selected equally often."""

from __future__ import annotations

import torch

from fewtokens.methods.selection.random_frames import RandomFrames


def test_frames_follow_from_the_seed_or_the_generator():
    times = torch.arange(50) / 2
    first = RandomFrames(5).select(times).index.tolist()
    assert RandomFrames(5).select(times).index.tolist() == first
    assert RandomFrames(5, seed=1).select(times).index.tolist() != first
    drawn = RandomFrames(5).select(times, generator=torch.Generator().manual_seed(3)).index.tolist()
    expected = torch.rand(50, generator=torch.Generator().manual_seed(3)).argsort()[:5].sort().values
    assert drawn == expected.tolist() != first


def test_each_frame_is_selected_equally_often():
    counts = torch.zeros(20)
    for seed in range(400):
        counts[RandomFrames(5, seed=seed).select(torch.arange(20)).index] += 1
    # Binomial(400, 1/4): mean 100, standard deviation 8.7.
    assert counts.sum() == 2000 and counts.min() > 65 and counts.max() < 135
