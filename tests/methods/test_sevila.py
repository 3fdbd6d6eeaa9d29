"""SeViLA's selection on the example of the specification."""

from __future__ import annotations

import pytest
import torch

from fewtokens.methods.selection.sevila import Sevila
from fewtokens.selection import Oracle
from fewtokens.selection.choose import select_among


def test_frames_are_ranked_by_the_normalized_score():
    """z("yes") - z("no") ranks the frames 1, 2, 0; z("yes") alone 0, 2, 1."""
    yes, no = torch.tensor([3.0, 1.0, 2.5]), torch.tensor([4.0, -2.0, 1.0])
    for keep, expected in ((1, [1]), (2, [1, 2])):
        assert Sevila(keep).select(torch.arange(3), relevance=(yes - no).sigmoid()).index.tolist() == expected


def test_the_best_of_32_candidates_in_the_order_of_time():
    times = torch.arange(311, dtype=torch.float64)
    asked: list[list[float]] = []
    scorer = Oracle(lambda seconds: asked.append(seconds.tolist()) or -(seconds - 152).abs())
    selection = select_among(Sevila(), torch.zeros(311, 3, 8, 8, dtype=torch.uint8), times, scorer=scorer)
    assert asked == [[10.0 * n for n in range(32)]]
    assert selection.index.tolist() == [140, 150, 160, 170]  # 2, 8, 12 and 18 s away; the next one is 22


def test_arguments():
    with pytest.raises(ValueError, match="keep must be at most the number of candidates, got 64 of 32"):
        Sevila(64)
    with pytest.raises(ValueError, match="frames must be at least 1"):
        Sevila(frames=0)
