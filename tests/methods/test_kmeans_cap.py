"""K-means over frames."""

from __future__ import annotations

import pytest
import torch

from fewtokens.methods.memory.kmeans_cap import KMeansCap
from tests.helpers.frames import angles, at_angles


def test_clusters_of_a_stream():
    generator = torch.Generator().manual_seed(0)
    which = torch.randint(3, (60,), generator=generator)
    which[:3] = torch.arange(3)
    noise = torch.rand(60, generator=generator) * 10
    out = KMeansCap(3, recent=5)(at_angles(*(which * 100 + noise).tolist()))
    assert sorted(out.sizes[0].tolist()) == sorted(torch.bincount(which).tolist())
    for angle, size in zip(angles(out), out.sizes[0].tolist(), strict=True):
        cluster = round((angle % 360 - 5) / 100)
        assert abs(angle % 360 - (which * 100 + noise)[which == cluster].mean()) < 0.2
        assert size == (which == cluster).sum()


def test_arguments():
    with pytest.raises(ValueError, match="iterations must be at least 1, got 0"):
        KMeansCap(iterations=0)
