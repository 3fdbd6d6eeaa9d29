"""Arithmetic of frame selection on small examples."""

from __future__ import annotations

import torch

from fewtokens.methods.ops.frames import (
    add_least_similar,
    fill_up,
    min_max,
    near_square,
    ranked,
    share_out,
    spread_rank,
)


def test_every_prefix_of_the_order_is_spread():
    order = spread_rank(100).argsort()
    for count in (4, 10, 25):
        gaps = torch.cat([order[:count].sort().values, torch.tensor([100])]).diff()
        assert int(gaps.max()) <= 3 * 100 / count
    assert spread_rank(7).sort().values.tolist() == list(range(7))


def test_ranks():
    assert ranked(torch.tensor([0.1, 0.9, 0.5])).tolist() == [1, 2, 0]
    ties = ranked(torch.zeros(50))
    assert sorted(ties.tolist()) == list(range(50)) and int((ties[:2].diff()).abs()) > 5


def test_min_max():
    assert min_max(torch.tensor([1.0, 3.0, 2.0])).tolist() == [0, 1, 0.5]
    assert min_max(torch.full((3,), 4.0)).tolist() == [0, 0, 0]


def test_quotas_are_filled_in_order_and_within_capacity():
    order = torch.tensor([2, 0, 1])
    assert fill_up(torch.tensor([0, 0, 0]), torch.tensor([5, 5, 5]), 2, order).tolist() == [1, 0, 1]
    assert fill_up(torch.tensor([3, 3, 3]), torch.tensor([1, 9, 2]), 9, order).tolist() == [1, 6, 2]


def test_shares_with_a_cap():
    # 1200 tokens in proportion to the squares of .9, .6, .3, at most 729 each (the specification).
    weight = torch.tensor([0.81, 0.36, 0.09])
    assert share_out(weight, 1200, 1e9).floor().tolist() == [771, 342, 85]
    assert share_out(weight, 1200, 729).floor().tolist() == [729, 376, 94]
    assert share_out(weight, 1e6, 729).tolist() == [729] * 3
    assert share_out(torch.zeros(4), 8, 729).tolist() == [2] * 4


def test_nearly_square_grids():
    cells = torch.tensor([1, 2, 3, 94, 376, 481, 729])
    expected = [[1, 1], [1, 2], [1, 2], [9, 10], [19, 19], [21, 22], [27, 27]]
    assert near_square(cells).tolist() == expected


def test_the_least_similar_frame_is_added():
    angles = torch.deg2rad(torch.tensor([0.0, 10, 90, 120]))
    x = torch.stack([angles.cos(), angles.sin()], 1)
    first = torch.tensor([0])
    assert add_least_similar(x, first, 3, "max").tolist() == [0, 3, 2]  # 30 degrees from 120, against 10 from 0
    # The means of the cosines to 0 and 120 degrees: 10 degrees (.985 - .342) / 2, 90 degrees (0 + .866) / 2.
    assert add_least_similar(x, first, 3, "mean").tolist() == [0, 3, 1]
    assert add_least_similar(x, torch.tensor([3, 1]), 2, "max").tolist() == [3, 1]
