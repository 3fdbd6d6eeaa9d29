"""Allocation of a budget among groups, groups in packs, means of tokens."""

from __future__ import annotations

import pytest
import torch

from fewtokens.methods.ops.groups import allocate, average, packs
from tests.helpers import naive


@pytest.mark.parametrize("total", [1, 3, 7, 12, 20])
def test_allocation_against_loops(total):
    sizes, weights = [5, 0, 2, 13], [1.0, 9.0, 4.0, 2.5]
    for weight in (None, weights):
        counts = allocate(
            torch.tensor([total]), torch.tensor([sizes]), None if weight is None else torch.tensor([weight])
        )
        assert counts[0].tolist() == naive.allocate(total, sizes, weight)


@pytest.mark.parametrize("groups", [1, 7, 40])
def test_packs_contain_each_token_of_a_group_once(groups):
    generator = torch.Generator().manual_seed(groups)
    group = (torch.rand(3, 400, generator=generator).square() * (groups + 1)).long() - 1
    values = torch.randn(1200, 2, generator=generator)
    out = torch.full((1200,), -5)
    for pack in packs(group, groups):
        assert int(pack.real.sum(1).min()) > 0
        assert bool((pack.rows(values) == values[pack.index]).all())
        assert torch.equal(pack.index[~pack.real], pack.index[:, :1].expand_as(pack.index)[~pack.real])
        own = group.flatten()[pack.index] + groups * (pack.index // 400)
        assert bool((own == pack.group[:, None]).all())
        for index, real in zip(pack.index, pack.real, strict=True):
            assert index[real].tolist() == sorted(index[real].tolist())
        pack.write(out, pack.group[:, None].expand_as(pack.index))
    expected = (group + groups * torch.arange(3)[:, None]).masked_fill(group < 0, -5).flatten()
    assert torch.equal(out, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_average_against_loops(dtype):
    features = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    target = torch.randint(-1, 5, (2, 30), generator=torch.Generator().manual_seed(1)) * 6
    target = target.masked_fill(target < 0, -1)
    means, at = average(features, target)
    for video in range(2):
        for cell in target[video][target[video] >= 0].unique().tolist():
            expected = features[video][target[video] == cell].float().mean(0)
            torch.testing.assert_close(means[at[video * 30 + cell]], expected)
