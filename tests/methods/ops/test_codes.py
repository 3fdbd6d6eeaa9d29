"""Codes: how many entries are used."""

from __future__ import annotations

import math

import torch

from fewtokens.methods.ops.codes import usage


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
