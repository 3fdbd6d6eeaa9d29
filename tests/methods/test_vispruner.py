"""VisPruner against loops, and the selection of the published code on a small example."""

from __future__ import annotations

import math

import pytest
import torch

from fewtokens.core.attention_rule import AttentionRule
from fewtokens.core.batch import collate
from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.pruning.vispruner import VisPruner
from tests.helpers.clips import assert_same_tokens, clip, cues
from tests.helpers.naive import cosine


def reference(x, attention, budget: int, important: float, step: int) -> set[int]:
    order = sorted(range(len(x)), key=lambda cell: -attention[cell])
    first = int(budget * important)
    kept, others = order[:first], order[first:]
    if budget == first:
        return set(kept)
    while len(others) > budget - first:
        a, b = others[::2], others[1::2]
        drop = min(step, len(others) - (budget - first), len(a))
        by_similarity = sorted(a, key=lambda cell: -max(cosine(x[cell], x[other]) for other in b))
        others = by_similarity[drop:] + b
    return {*kept, *others}


@pytest.mark.parametrize(("step", "expected"), [(8, [0, 2, 3, 7]), (2, [0, 2, 3, 6])])
def test_a_small_example(step, expected):
    """The step is part of the definition."""
    angles = torch.tensor([0, 2, 4, 90, 92, 180, 182, 270.0]).deg2rad()
    features = torch.stack([angles.cos(), angles.sin()], 1)[None]
    tokens = Tokens.from_cells(features, Grid(1, 2, 4))
    attention = torch.tensor([[0.3, 0.05, 0.2, 0.02, 0.15, 0.08, 0.12, 0.08]])
    out = VisPruner(4, drop=step)(tokens, attention=attention)
    assert out.cell[0].tolist() == expected
    assert torch.equal(out.features[0], features[0, expected])


@pytest.mark.parametrize("keep", [3, 13, 40, 59])
@pytest.mark.parametrize(("important", "step"), [(0.5, 8), (0.0, 3), (1.0, 8), (0.3, 1)])
def test_against_loops(keep, important, step):
    tokens = clip(3, 4, 5, 16, 1)
    attention = cues(tokens)["attention"]
    expected = set()
    for t in range(3):
        budget = (t + 1) * keep // 3 - t * keep // 3
        frame = slice(20 * t, 20 * t + 20)
        x = tokens.features[0, frame].double().numpy()
        chosen = reference(x, attention[0, frame].tolist(), budget, important, step)
        expected |= {20 * t + cell for cell in chosen}
    out = VisPruner(keep, important=important, drop=step)(tokens, attention=attention)
    assert out.cell[0].tolist() == sorted(expected)
    assert keep == out.N


def test_videos_of_unequal_lengths():
    videos = [clip(T, 4, 5, 16, 1, seed=T) for T in (2, 5)]
    both = collate(videos)
    out = VisPruner(0.3)(both, attention=cues(both)["attention"])
    for number, tokens in enumerate(videos):
        assert_same_tokens(out[number], VisPruner(0.3)(tokens, attention=cues(tokens)["attention"]))


def test_invalid_arguments():
    with pytest.raises(ValueError, match="important must be in"):
        VisPruner(important=math.pi)
    with pytest.raises(ValueError, match="drop at least 1"):
        VisPruner(drop=0)
    rule = VisPruner().attention_rule
    assert rule == AttentionRule(("class", "received"), -1, "mean")
