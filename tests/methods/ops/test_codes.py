"""Codes: how many entries are used, and how similar those of different codebooks are."""

from __future__ import annotations

import math

import torch

from fewtokens.methods.ops.codes import orthogonality, usage


def test_usage_per_level():
    codes = torch.tensor([[[0, 5], [1, -1], [0, -1], [1, 7]], [[2, 7], [2, -1], [3, -1], [3, 7]]])
    share, perplexity = usage(codes, (4, 16))
    assert share.tolist() == [1.0, 2 / 16]
    # Four entries equally often; and one in four against three in four.
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    torch.testing.assert_close(perplexity, torch.tensor([4.0, math.exp(entropy)], dtype=torch.float64))


def test_usage_without_padding_and_without_codes():
    codes = torch.tensor([[[0, -1], [0, -1], [3, -1]]])
    share, perplexity = usage(codes, (4, 2**40), torch.tensor([[True, True, False]]))
    assert share.tolist() == [0.25, 0.0]
    assert perplexity.tolist() == [1.0, 0.0]


def test_orthogonality():
    """The anchors of FQGAN's penalty: 1 for equal entries, 0 for orthogonal ones, 1/8 for random ones of 8 channels."""
    torch.manual_seed(0)
    x = torch.randn(20_000, 8)
    torch.testing.assert_close(orthogonality(torch.stack([x, 3 * x], 1)), torch.tensor(1.0))
    axes = torch.eye(8)[:3].expand(5, -1, -1)
    assert float(orthogonality(axes)) == 0
    random = orthogonality(torch.randn(20_000, 2, 8))
    torch.testing.assert_close(random, torch.tensor(0.125), atol=0.003, rtol=0)
    # Three codebooks: the mean over pairs, of which one is equal.
    pairs = orthogonality(torch.stack([torch.eye(8)[0], torch.eye(8)[0], torch.eye(8)[1]])[None])
    torch.testing.assert_close(pairs, torch.tensor(1 / 3))
