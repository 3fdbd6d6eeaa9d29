"""Dense tokens equal one matrix product."""

from __future__ import annotations

import torch

from fewtokens.core.tokens import Tokens
from fewtokens.methods.learned.dense_tokens import DenseTokens


def test_dense_tokens_are_one_matrix():
    dense = DenseTokens("5/frame", dim=3, side=4)
    x = torch.randn(2, 4, 4, 3)
    expected = torch.einsum("sn,fnc->fsc", dense.layer.flatten(1), x.flatten(1, 2)) + dense.bias
    torch.testing.assert_close(dense.learn(x)[0], expected)
    out = dense(Tokens.from_cells(x[:, None]))
    torch.testing.assert_close(out.features, expected)
