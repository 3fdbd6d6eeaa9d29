"""Position VQ: the codebook of each cell, independent groups, restarts."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core.grid import Grid
from fewtokens.methods.quantizers.position_vq import PositionVq


def build(groups: int = 3) -> PositionVq:
    torch.manual_seed(0)
    return PositionVq(20, dim=4, code_dim=4, groups=groups).eval()


@pytest.mark.parametrize("groups", [1, 3, 6, 8])
def test_the_nearest_entry_of_the_codebook_of_the_cell(groups):
    """6 cells, also with more codebooks than cells, and numbers that do not divide them."""
    method = build(groups)
    x = torch.randn(2, 12, 4)
    features, codes, _ = method.quantize(x, None, Grid(2, 2, 3))
    for cell in range(12):
        table = method.codebook.table[cell % 6 % groups]
        expected = (x[:, cell, None] - table).square().sum(-1).argmin(-1)
        assert torch.equal(codes[:, cell, 0], expected)
        assert torch.equal(features[:, cell], table[expected])


def test_groups_are_independent():
    method = build()
    x = torch.randn(1, 12, 4)
    other = x.clone()
    other[:, 1::3] = torch.randn(1, 4, 4)
    a, b = method.quantize(x, None, Grid(2, 2, 3)).codes, method.quantize(other, None, Grid(2, 2, 3)).codes
    rest = torch.arange(12) % 3 != 1
    assert torch.equal(a[:, rest], b[:, rest])
    assert not torch.equal(a, b)


def test_restarts():
    """After 50 calls, the entries that no token of the group chose are near the most used ones."""
    method = build(2).train()
    method.codebook.table.data[:, 10:] = 100.0
    before = method.codebook.table.detach().clone()
    x = torch.randn(1, 200, 4) / 2
    mask = torch.ones(1, 200, dtype=torch.bool)
    mask[:, 100:] = False
    codes = method.quantize(x, mask, Grid(4, 5, 10)).codes[0, :100, 0]
    for _ in range(49):
        method.quantize(x, mask, Grid(4, 5, 10))
    table = method.codebook.table
    for group in range(2):
        moved = (table[group] != before[group]).any(-1)
        used = codes[group::2].bincount(minlength=20)
        assert int(moved.sum()) == 4
        assert not bool(used[moved].any())
        most = before[group, used.argmax()]
        assert float((table[group, moved].detach() - most).square().mean(-1).sqrt().min()) < 0.2


def test_losses_and_bad_arguments():
    method = build().train()
    x = torch.randn(1, 6, 4)
    features, _, losses = method.quantize(x, None, Grid(1, 2, 3))
    error = (features - x).square().mean()
    torch.testing.assert_close(losses, {"codebook": error, "commitment": 0.25 * error})
    with pytest.raises(ValueError, match="groups must be at least 1"):
        PositionVq(groups=0)
