"""Selection by attention on the example of the specification, and against a sorted list per frame."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core.tokens import Tokens
from fewtokens.methods.pruning.attention_topk import AttentionTopk
from tests.helpers.clips import clip, cues


def test_an_image_by_hand():
    attention = torch.tensor([[0.3, 0.05, 0.2, 0.02, 0.15, 0.08, 0.12, 0.08]])
    image = Tokens.from_cells(torch.randn(1, 1, 2, 4, 6))
    out = AttentionTopk(3)(image, attention=attention)
    assert (out.assignment[0] >= 0).nonzero().flatten().tolist() == [0, 2, 4]


@pytest.mark.parametrize("keep", [3, 14, 0.4])
def test_each_frame_keeps_its_most_attended_tokens(keep):
    video = clip(3, 4, 5, 16, 1)
    attention = cues(video)["attention"]
    out = AttentionTopk(keep)(video, attention=attention)
    total = round(keep * 60) if isinstance(keep, float) else keep
    kept = (out.assignment[0] >= 0).reshape(3, 20)
    assert kept.sum(1).tolist() == [total // 3 + (t < total % 3) for t in range(3)]
    for t in range(3):
        scores = attention[0, 20 * t : 20 * t + 20].tolist()
        best = sorted(range(20), key=lambda n: -scores[n])[: int(kept[t].sum())]
        assert kept[t].nonzero().flatten().tolist() == sorted(best)
