"""F2C: the budget of clips of several sizes, and clips around planted events."""

from __future__ import annotations

import pytest
import torch

from fewtokens.methods.selection.f2c import F2c, local_maxima


def peaks(T, at, width=1):
    scores = torch.zeros(T)
    for frame in at:
        scores[frame - width + 1 : frame + width] = 1
    return scores


def test_local_maxima_are_the_middles_of_plateaus():
    assert local_maxima(torch.tensor([3.0, 1, 2, 2, 2, 0, 5])).tolist() == [0, 3, 6]
    assert local_maxima(torch.zeros(5)).tolist() == [2]


def test_a_longer_clip_has_smaller_frames_at_the_same_cost():
    """8 anchors that share 8 full frames: a clip of l frames at side 1/s with l = s^2 costs one frame."""
    distinct = torch.eye(200)
    at = [12 + 25 * n for n in range(8)]
    selection = F2c(8).select(torch.arange(200), relevance=peaks(200, at), features=distinct)
    assert selection.why["lengths"].tolist() == [1] * 8
    assert selection.index.tolist() == at and selection.full_size
    # Events of 5 frames: longer clips.
    wide = F2c(8).select(torch.arange(200), relevance=peaks(200, at, 3), features=distinct)
    lengths = wide.why["lengths"].tolist()
    assert set(lengths) == {4}
    torch.testing.assert_close(wide.scale, torch.full((32, 2), 0.5, dtype=torch.float64))
    assert float(wide.scale.prod(1).sum()) == pytest.approx(8)


def test_equal_frames_are_not_repeated():
    at = [12 + 25 * n for n in range(8)]
    selection = F2c(8).select(torch.arange(200), relevance=peaks(200, at, 3), features=torch.ones(200, 4))
    assert selection.why["lengths"].tolist() == [1] * 8


def test_clusters_of_anchors_keep_the_best_of_each():
    kinds = torch.tensor([0, 1] * 10)
    scores = torch.zeros(100)
    scores[5 * torch.arange(20)] = 0.5 + torch.arange(20) / 100
    features = torch.nn.functional.one_hot(kinds.repeat_interleave(5), 2).float()
    anchors = F2c(2, anchors=2).select(torch.arange(100), relevance=scores, features=features).why["anchors"]
    assert sorted(anchors.tolist()) == [90, 95]  # the last of each kind is the best


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("grid", [14, 27])
def test_tokens_are_within_the_budget(seed, grid):
    generator = torch.Generator().manual_seed(seed)
    scores, features = torch.rand(300, generator=generator), torch.randn(300, 8, generator=generator)
    for keep in (1, 5, 16):
        selection = F2c(keep).select(torch.arange(300), relevance=scores, features=features)
        total = int(selection.tokens(grid, grid).sum())
        assert 0.5 * keep * grid**2 <= total <= keep * grid**2


def test_overlapping_clips_leave_their_cost_to_the_best():
    scores = torch.zeros(60)
    scores[20:25] = torch.tensor([0.8, 0.9, 0.85, 0.95, 0.8])
    selection = F2c(4, anchors=2).select(torch.arange(60), relevance=scores, features=torch.eye(60))
    assert len(selection.index.unique()) == len(selection)
    assert float(selection.scale.prod(1).sum()) == pytest.approx(4)
