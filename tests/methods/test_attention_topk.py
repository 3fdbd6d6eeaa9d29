"""Selection by attention on the example of the specification, and against a sorted list per frame."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from fewtokens.core import registry
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.pruning.attention_topk import AttentionTopk
from tests.helpers.clips import clip, cues


def test_an_image_by_hand():
    attention = torch.tensor([[0.3, 0.05, 0.2, 0.02, 0.15, 0.08, 0.12, 0.08]])
    image = Tokens.from_cells(torch.randn(1, 1, 2, 4, 6))
    out = AttentionTopk(3)(image, attention=attention)
    assert (out.assignment[0] >= 0).nonzero().flatten().tolist() == [0, 2, 4]


@pytest.mark.parametrize("method", ["attention_topk", "visionzip(contextual=0.0)", "vispruner(important=1.0)"])
@pytest.mark.parametrize("keep", [4, 7, 17])
def test_methods_that_read_attention_keep_the_same_tokens(method, keep):
    """Without their own additions they differ in nothing, in a batch of videos of different length either."""
    video = clip(3, 2, 5, 16, 2, lengths=[3, 2])
    given = {name: value for name, value in cues(video).items() if name in ("attention", "keys")}
    (built,) = registry.build(method)
    built.set_budget(keep)
    kept = (built(video, **{name: given[name] for name in built.needs}).assignment >= 0).reshape(2, 3, 10).sum(2)
    for row, frames in zip(kept.tolist(), (3, 2), strict=True):
        ends = [t * keep // frames for t in range(frames + 1)]
        assert row == [b - a for a, b in pairwise(ends)] + [0] * (3 - frames)


def test_frames_that_lost_tokens_get_a_part_in_proportion():
    video = clip(3, 2, 5, 16, 1)
    kept = torch.ones(1, 30, dtype=torch.bool)
    kept[0, 2:10] = False  # 2, 10 and 10 tokens remain
    tokens = video.apply(Plan.keep(kept, 22))
    out = AttentionTopk(11)(tokens, attention=torch.rand(1, 22))
    assert torch.bincount(out.frame[0]).tolist() == [1, 5, 5]


@pytest.mark.parametrize("keep", [3, 14, 0.4])
def test_each_frame_keeps_its_most_attended_tokens(keep):
    video = clip(3, 4, 5, 16, 1)
    attention = cues(video)["attention"]
    out = AttentionTopk(keep)(video, attention=attention)
    total = round(keep * 60) if isinstance(keep, float) else keep
    kept = (out.assignment[0] >= 0).reshape(3, 20)
    assert kept.sum(1).tolist() == [(t + 1) * total // 3 - t * total // 3 for t in range(3)]
    for t in range(3):
        scores = attention[0, 20 * t : 20 * t + 20].tolist()
        best = sorted(range(20), key=lambda n: -scores[n])[: int(kept[t].sum())]
        assert kept[t].nonzero().flatten().tolist() == sorted(best)


@pytest.mark.parametrize("keep", [1, 13, 0.6])
def test_ties_in_full_frames_are_decided_as_among_other_tokens(keep):
    """Tokens in another order are not a full grid, and take the general path."""
    video = clip(3, 4, 5, 16, 2, lengths=[3, 2])
    attention = torch.randint(0, 4, (2, 60)).float()
    order = torch.arange(60).reshape(3, 20).flip(0).flatten()  # the order within a frame stays
    moved = Tokens(
        **{name: getattr(video, name)[:, order] for name in ("features", "positions", "sizes", "mask")},
        assignment=torch.where(video.mask, order.argsort(), -1),
        grid=video.grid,
    )
    assert video.has_full_grid()
    assert not moved.has_full_grid()
    method = AttentionTopk(keep)
    kept = method.plan(video, attention=attention).dest >= 0
    again = method.plan(moved, attention=attention[:, order]).dest >= 0
    assert torch.equal(again, kept[:, order])
