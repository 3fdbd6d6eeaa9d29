"""Comparison with the previous frame: the shifted view equals the general way, and cosines equal PyTorch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops import temporal
from fewtokens.methods.ops.temporal import LastFrame, compare_with_previous, cosine, in_blocks


@pytest.fixture
def tokens():
    torch.manual_seed(0)
    lengths = torch.tensor([5, 2, 1])
    return Tokens.from_cells(torch.randn(3, 5 * 12, 16), Grid(5, 3, 4, lengths=lengths))


@pytest.mark.parametrize("stream", [False, True])
def test_the_shifted_view_and_the_general_way_give_equal_results(tokens, stream, monkeypatch):
    last = None
    if stream:
        has_token = torch.rand(3, 12) < 0.7
        last = LastFrame(torch.randn(3, 12, 16), has_token)
    shifted, exists = compare_with_previous(cosine, tokens.features, tokens, last)
    monkeypatch.setattr(temporal, "_one_per_cell", lambda tokens: False)
    general, also_exists = compare_with_previous(cosine, tokens.features, tokens, last)
    assert torch.equal(exists, also_exists)
    assert torch.equal(shifted, general)
    assert bool(exists[:, :12].any()) == stream


def test_each_token_is_compared_with_its_previous_cell(tokens):
    result, exists = compare_with_previous(
        lambda before, now: (now - before).abs().sum(2), tokens.features, tokens, before=2 * tokens.features
    )
    for b, t, n in ((0, 1, 0), (0, 4, 11), (1, 1, 3)):
        now, before = (tokens.features[b, (t - k) * 12 + n] for k in (0, 1))
        torch.testing.assert_close(result[b, t * 12 + n], (now - 2 * before).abs().sum())
    assert exists.sum(1).tolist() == [48, 12, 0]
    assert not result[~exists].any()


def test_blocks_do_not_change_the_result(monkeypatch):
    torch.manual_seed(0)
    a, b = torch.randn(2, 37, 3, 8), torch.randn(2, 37, 3, 8)
    whole = cosine(a, b)
    monkeypatch.setattr(temporal, "_BLOCK_ENTRIES", 100)
    assert torch.equal(cosine(a, b), whole)
    assert torch.equal(in_blocks(lambda p, q: (p * q).sum((2, 3)), a, b), (a * b).sum((2, 3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_cosine(dtype):
    torch.manual_seed(0)
    a, b = torch.randn(2, 9, 33).to(dtype), torch.randn(2, 9, 33).to(dtype)
    assert cosine(a, b).dtype == torch.float32
    torch.testing.assert_close(cosine(a, b), F.cosine_similarity(a.float(), b.float(), dim=-1), rtol=1e-5, atol=1e-6)
    zero = torch.zeros(1, 3, 4)
    assert (cosine(zero, zero) == 1).all()
    assert (cosine(zero, torch.ones(1, 3, 4)) == 0).all()
