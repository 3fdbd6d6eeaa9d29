"""VideoScan's carriers: worked examples of the published rule."""

from __future__ import annotations

import pytest
import torch

from fewtokens.methods.memory.videoscan import VideoScan
from tests.helpers.frames import angles, at_angles, stream


def test_the_earlier_of_the_most_similar_neighbors_is_dropped():
    # The published code with a limit of 4 holds at most 3.
    out = VideoScan(3)(at_angles(0, 4, 50, 52, 90, 91))
    assert out.positions[0, :, 0].tolist() == [1, 3, 5]
    assert VideoScan(3)(at_angles(*[30] * 8)).positions[0, :, 0].tolist() == [5, 6, 7]


def test_a_merged_carrier_stands_for_both():
    out = VideoScan(3, rule="merge")(at_angles(0, 4, 50, 52, 90, 91))
    assert angles(out) == [2, 51, 90.5]
    assert out.assignment.tolist() == [[0, 0, 1, 1, 2, 2]]


def test_a_carrier_is_the_mean_of_its_frame():
    tokens = stream(3, H=2, W=3)
    out = VideoScan()(tokens)
    torch.testing.assert_close(out.features, tokens.features.unflatten(1, (3, 6)).mean(2))
    assert out.sizes.tolist() == [[6, 6, 6]]
    torch.testing.assert_close(out.positions[0, :, 1:], torch.tensor([[0.5, 1.0]] * 3))
    assert out.assignment.tolist() == [[0] * 6 + [1] * 6 + [2] * 6]


def test_arguments():
    with pytest.raises(ValueError, match="rule must be 'drop' or 'merge', got 'keep'"):
        VideoScan(rule="keep")
