"""VisPruner on the example of the specification, and against loops in the published order."""

from __future__ import annotations

import math

import pytest
import torch

from fewtokens.core.batch import collate
from fewtokens.core.tokens import Tokens
from fewtokens.methods.pruning.vispruner import VisPruner
from tests.helpers.clips import clip, cues
from tests.helpers.naive import cosine


@pytest.mark.parametrize(("step", "survivors"), [(8, [0, 2, 3, 7]), (2, [0, 2, 3, 6])])
def test_an_image_by_hand(step, survivors):
    angles = [math.radians(angle) for angle in (0, 2, 4, 90, 92, 180, 182, 270)]
    image = Tokens.from_cells(torch.tensor([[math.cos(a), math.sin(a)] for a in angles]).reshape(1, 1, 2, 4, 2))
    attention = torch.tensor([[0.3, 0.05, 0.2, 0.02, 0.15, 0.08, 0.12, 0.08]])
    out = VisPruner(4, per_round=step)(image, attention=attention)
    assert (out.assignment[0] >= 0).nonzero().flatten().tolist() == survivors


def by_loops(x, scores, count: int, important: float, step: int) -> list[int]:
    """The tokens of a frame that remain."""
    order = sorted(range(len(x)), key=lambda n: -scores[n])
    first = int(count * important)
    kept, rest = order[:first], order[first:]
    while len(rest) > count - first:
        a, b = rest[::2], rest[1::2]
        a = sorted(a, key=lambda n: -max((cosine(x[n], x[m]) for m in b), default=-2))
        rest = a[min(step, len(rest) - (count - first)) :] + b
    return sorted(kept + rest)


@pytest.mark.parametrize(("keep", "important", "step"), [(24, 0.5, 8), (13, 0.5, 3), (30, 0.0, 2), (9, 1.0, 8)])
def test_a_padded_batch_against_loops(keep, important, step):
    videos = [clip(t, 4, 5, 16, 1, seed=t) for t in (3, 2)]
    attention = [cues(video)["attention"] for video in videos]
    padded = torch.stack([torch.nn.functional.pad(row[0], (0, 60 - row.shape[1])) for row in attention])
    out = VisPruner(keep, important=important, per_round=step)(collate(videos), attention=padded)
    for row, (video, scores) in enumerate(zip(videos, attention, strict=True)):
        T = video.grid.T
        expected = []
        for t in range(T):
            x = video.features[0, 20 * t : 20 * t + 20].double().numpy()
            count = keep // T + (t < keep % T)
            expected += [
                20 * t + n for n in by_loops(x, scores[0, 20 * t : 20 * t + 20].tolist(), count, important, step)
            ]
        assert (out.assignment[row] >= 0).nonzero().flatten().tolist() == expected


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"important must be in \[0, 1\]"):
        VisPruner(4, important=1.5)
    with pytest.raises(ValueError, match="per_round must be at least 1"):
        VisPruner(4, per_round=0)
