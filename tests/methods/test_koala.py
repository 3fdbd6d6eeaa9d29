"""Koala's segments and key frames, by hand and against the published sampling."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewtokens.methods.selection.koala import Koala


def test_two_segments_of_three_frames():
    """Of 11 frames every second one; the key frames are the first, the last, and one in the middle."""
    selection = Koala(2, frames=3).select(torch.arange(11))
    assert selection.index.tolist() == [0, 2, 4, 6, 8, 10]
    assert selection.why["segment"].tolist() == [0, 0, 0, 1, 1, 1]
    assert selection.why["key"].tolist() == [0, 2, 5]


@pytest.mark.parametrize("T", [65, 200, 5400])
def test_frames_are_at_most_one_interval_from_the_published_ones(T):
    """The published code takes both from linspace over the video, rounded down."""
    selection = Koala().select(torch.arange(T))
    index, key = selection.index.numpy(), selection.index[selection.why["key"]].numpy()
    assert np.abs(index - np.linspace(0, T - 1, 64).astype(int)).max() <= 1
    assert len(set(key.tolist())) == 16
    assert np.abs(key - np.linspace(0, T - 1, 16)).max() <= (T - 1) / 63 / 2 + 1
    assert selection.why["segment"].bincount().tolist() == [16] * 4


def test_arguments():
    with pytest.raises(ValueError, match="koala: segments and frames must be at least 1, got 0 and 16"):
        Koala(0)
