"""The functions that move, rank and sum rows equal their plain definitions."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core.plan import Plan, group_sum, position_order, take_rows, top_mask, weighted_group_sum
from fewtokens.core.tokens import Tokens


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", [(1, 7, 3), (2, 7, 3), (3, 5), (2, 6, 2, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64])
def test_rows_are_those_of_the_index(shape, dtype):
    values = torch.randn(shape).mul(10).to(dtype)
    index = torch.randint(0, shape[1], (shape[0], 9))
    expected = torch.stack([rows[i] for rows, i in zip(values, index, strict=True)])
    assert torch.equal(take_rows(values, index), expected)
    strided = torch.stack([values, values], -1)[..., 0]
    assert torch.equal(take_rows(strided, index), expected)


@pytest.mark.parametrize("batch", [1, 3])
def test_gradients_of_moved_rows(batch):
    values = torch.randn(batch, 5, 4, dtype=torch.float64, requires_grad=True)
    index = torch.randint(0, 5, (batch, 8))
    assert torch.autograd.gradcheck(lambda x: take_rows(x, index), values)


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_the_highest_scores_are_kept_and_ties_go_to_the_first(levels):
    scores = torch.randint(0, levels, (4, 60)).float()
    scores[1, 7], scores[2, 3] = torch.nan, torch.inf
    count, real = torch.tensor([0, 1, 17, 40]), torch.tensor([60, 30, 45, 40])
    mask = torch.arange(60) < real[:, None]
    rank = scores.masked_fill(~mask, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    assert torch.equal(top_mask(scores, count, mask), (rank < count[:, None]) & mask)


def test_scores_of_minus_infinity_rank_above_padding():
    mask = torch.tensor([[True, True, True, False]])
    scores = torch.tensor([[0.0, -torch.inf, -torch.inf, 5.0]])
    assert top_mask(scores, torch.tensor([2]), mask).tolist() == [[True, True, False, False]]


def test_no_tokens():
    empty = torch.zeros(2, 0)
    assert top_mask(empty, torch.zeros(2, dtype=torch.int64), empty.bool()).shape == (2, 0)
    assert position_order(torch.zeros(2, 0, 3), empty.bool()).shape == (2, 0)


def test_positions_are_sorted_by_time_row_and_column():
    positions = (torch.rand(3, 200, 3) * torch.tensor([5000.0, 3.0, 40.0])).round(decimals=0)
    positions[0, :, 0] -= 100  # earlier chunks of a stream
    real = torch.arange(200) < torch.tensor([200, 150, 1])[:, None]
    for order, rows, mask in zip(position_order(positions, real), positions, real, strict=True):
        expected = sorted(range(200), key=lambda i: (not mask[i], *(rows[i].tolist() if mask[i] else (0,))))
        assert order[: int(mask.sum())].tolist() == expected[: int(mask.sum())]


@pytest.mark.parametrize("batch", [1, 3])
def test_weighted_sums_of_groups(batch):
    values, weight = torch.randn(batch, 50, 6), torch.rand(batch, 50)
    dest = torch.randint(-1, 12, (batch, 50))
    dest[0] = -1
    fast = weighted_group_sum(values, weight, dest, 12)
    plain = group_sum(weight[..., None] * values, dest, 12)
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-6)
    assert not fast[0].any()


def test_a_token_alone_in_its_group_is_copied_bit_for_bit():
    values = torch.randn(2, 30, 8)
    dest = torch.stack([torch.randperm(30) for _ in range(2)])
    assert torch.equal(take_rows(weighted_group_sum(values, torch.ones(2, 30), dest, 30), dest), values)


def test_gradients_of_weighted_sums():
    values = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(2, 6, dtype=torch.float64, requires_grad=True)
    dest = torch.randint(-1, 4, (2, 6))
    assert torch.autograd.gradcheck(lambda x, w: weighted_group_sum(x, w, dest, 4), (values, weight))
    single = torch.randn(2, 6, 3, requires_grad=True)
    weighted_group_sum(single, weight.float(), dest, 4).sum().backward()
    assert single.grad is not None


def test_kept_tokens_are_their_own_representatives():
    kept = torch.rand(3, 40) < 0.4
    kept[1] = False
    plan = Plan.keep(kept)
    tokens = Tokens.from_cells(torch.randn(3, 1, 5, 8, 4))
    out = tokens.apply(plan)
    for b in range(3):
        assert torch.equal(out.features[b, : int(kept[b].sum())], tokens.features[b, kept[b]])
    with pytest.raises(ValueError, match="num_slots"):
        Plan.keep(torch.ones(1, 5, dtype=torch.bool), 3)
