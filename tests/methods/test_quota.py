"""QuoTA's shares on the examples of the specification."""

from __future__ import annotations

import pytest
import torch

from fewtokens.methods.selection.quota import Quota


@pytest.mark.parametrize(
    ("scores", "tokens", "grids"),
    [
        ((0.9, 0.6, 0.3), 1200, [[27, 27], [19, 19], [9, 10]]),
        ((0.9, 0.3, 0.3), 588, [[21, 22], [7, 7], [7, 7]]),
        ((0.9, 0.3, 0.3), 12544, [[27, 27]] * 3),
    ],
)
def test_the_specification(scores, tokens, grids):
    selection = Quota(tokens).select(torch.arange(3), relevance=torch.tensor(scores))
    assert selection.cells(27, 27).tolist() == grids
    assert selection.index.tolist() == [0, 1, 2]


def test_every_frame_has_a_token_and_the_total_is_kept():
    scores = torch.tensor([1.0] + [0.001] * 49)
    for tokens in (96, 200, 750):
        counts = Quota(tokens, frames=50).select(torch.arange(50), relevance=scores).tokens(27, 27)
        assert int(counts.min()) == 1 and int(counts.sum()) <= tokens
    assert Quota(600, frames=50).select(torch.arange(50), relevance=scores).tokens(27, 27)[0] > 500


def test_equal_shares_are_whole():
    """Shares of 4 and 256 in floats, a rounding error below."""
    alike = torch.full((49,), 0.5)
    assert int(Quota(196, frames=49).select(torch.arange(49), relevance=alike).tokens(27, 27).sum()) == 196
    assert Quota().select(torch.arange(49), relevance=alike).cells(27, 27).tolist() == [[16, 16]] * 49


def test_negative_relevance_counts_as_none():
    assert Quota(100).select(torch.arange(2), relevance=torch.tensor([-1.0, 0.5])).tokens(27, 27).tolist() == [1, 90]


def test_candidates_grow_with_the_hours():
    assert Quota().max_candidates(60) == 97 and Quota().max_candidates(7200) == 224


def test_arguments():
    with pytest.raises(ValueError, match="at least one per frame"):
        Quota(10)
    with pytest.raises(ValueError, match="at least 1"):
        Quota(grid=0)
