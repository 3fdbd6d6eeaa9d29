"""Position VQ: the codebook of each cell, independent groups, restarts."""

from __future__ import annotations

import math

import pytest
import torch

from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.evaluation.reconstruction.metrics import code_health
from fewtokens.methods.ops.codes import usage
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


def test_the_use_of_each_codebook():
    """Codebook 0 has collapsed, which the codes of all cells together do not show."""
    method = build(2)
    codes = torch.arange(12).reshape(1, 12, 1).expand(2, -1, -1).clone()
    codes[:, ::2] = 7
    tokens = Tokens.from_cells(torch.zeros(2, 12, 4), Grid(2, 2, 3)).replace(codes=codes)
    columns, sizes = method.codes_by_book(tokens)
    assert sizes == (20, 20)
    even = torch.tensor([0, 2, 4, 6, 8, 10])  # frames have 6 cells
    assert torch.equal(columns[:, even, 0], codes[:, even, 0]) and bool((columns[:, even, 1] == -1).all())
    assert torch.equal(columns[:, even + 1, 1], codes[:, even + 1, 0]) and bool((columns[:, even + 1, 0] == -1).all())
    share, perplexity = usage(columns, sizes)
    assert share.tolist() == pytest.approx([1 / 20, 6 / 20])
    assert perplexity.tolist() == pytest.approx([1.0, 6.0])
    health = code_health(columns, sizes)
    assert health["bits_per_token"] == pytest.approx(math.log2(20))
    assert health["entropy_bits"] == pytest.approx(math.log2(6) / 2)


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
