"""PruneVid inside the language model, on handmade attention: each group against a sorted list."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fewtokens.core.layer_method import PrunePoint
from fewtokens.core.plan import Plan
from fewtokens.methods.layers.prunevid_inner import PruneVidInner
from tests.helpers.layers import kept_columns, layer_state, top_columns


@pytest.mark.parametrize(("keep", "count"), [(0.4, 1), (0.5, 2), (0.75, 3), (0.01, 1), (1.0, 4)])
def test_each_full_frame_is_a_group(keep, count):
    inputs = layer_state()
    decision = PruneVidInner(keep).choose(inputs, 0)
    assert kept_columns(decision.kept) == [
        top_columns(row, range(3, 7), count) + top_columns(row, range(7, 11), count) for row in inputs.scores.tolist()
    ]


def test_tokens_that_span_the_same_frames_are_a_group():
    """Positions 0 and 3 are one token each over both frames: 2 static tokens and 2 tokens per frame."""
    inputs = layer_state()
    videos = []
    for video in inputs.videos:
        labels = torch.tensor([[0, 1, 2, 3, 0, 4, 5, 3]])
        tokens = video.tokens.apply(Plan.group(labels, video.tokens))
        spans = [sorted({int(cell) // 4 for cell in (tokens.assignment[0] == n).nonzero()}) for n in range(tokens.N)]
        videos.append(replace(video, tokens=tokens, columns=torch.arange(3, 9)))
    inputs = replace(inputs, videos=videos)
    assert sorted(spans) == [[0], [0], [0, 1], [0, 1], [1], [1]]
    decision = PruneVidInner(0.5).choose(inputs, 0)
    groups = [[3 + n for n, span in enumerate(spans) if span == frames] for frames in ([0], [1], [0, 1])]
    assert kept_columns(decision.kept) == [
        sorted(column for group in groups for column in top_columns(row, group, 1)) for row in inputs.scores.tolist()
    ]


def test_the_scoring_layer_is_the_last_with_all_tokens():
    assert PruneVidInner().prune_points(28) == [PrunePoint(11, 10)]
    assert PruneVidInner.prunes_earlier
    assert (PruneVidInner.asks, PruneVidInner().pool) == ("text", "max")
