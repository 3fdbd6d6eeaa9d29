"""PruneVid inside the language model, on hand-made attention: each group by a sorted list."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fewtokens.core.layer_method import PrunePoint
from fewtokens.core.plan import Plan
from fewtokens.methods.layers.prunevid_inner import PruneVidInner
from tests.helpers.layers import best, chosen, state


@pytest.mark.parametrize(("keep", "count"), [(0.4, 1), (0.5, 2), (0.75, 3), (0.01, 1), (1.0, 4)])
def test_of_whole_frames_each_frame_is_a_group(keep, count):
    given = state()
    decision = PruneVidInner(keep).choose(given, 0)
    assert chosen(decision.kept) == [
        best(row, range(3, 7), count) + best(row, range(7, 11), count) for row in given.scores.tolist()
    ]


def test_what_spans_the_same_frames_is_a_group():
    """Places 0 and 3 are one token each over both frames, so there are 2 static tokens and 2 of each frame."""
    given = state()
    videos = []
    for video in given.videos:
        labels = torch.tensor([[0, 1, 2, 3, 0, 4, 5, 3]])
        tokens = video.tokens.apply(Plan.group(labels, video.tokens))
        spans = [sorted({int(cell) // 4 for cell in (tokens.assignment[0] == n).nonzero()}) for n in range(tokens.N)]
        videos.append(replace(video, tokens=tokens, columns=torch.arange(3, 9)))
    given = replace(given, videos=videos)
    assert sorted(spans) == [[0], [0], [0, 1], [0, 1], [1], [1]]
    decision = PruneVidInner(0.5).choose(given, 0)
    groups = [[3 + n for n, span in enumerate(spans) if span == frames] for frames in ([0], [1], [0, 1])]
    assert chosen(decision.kept) == [
        sorted(column for group in groups for column in best(row, group, 1)) for row in given.scores.tolist()
    ]


def test_the_layer_that_is_asked_is_the_last_whole_one():
    assert PruneVidInner().prune_points(28) == [PrunePoint(11, 10)]
    assert PruneVidInner.prunes_earlier
    assert (PruneVidInner.asks, PruneVidInner().pool) == ("text", "max")
