"""Merging within windows between the blocks of an encoder, against loops over windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewtokens.core.tokens import Tokens
from fewtokens.methods.merging.merge_windows_in_encoder import MergeWindowsInEncoder
from tests.helpers import naive


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_against_loops(depth, seed):
    """Windows of 4 cells shrink to 2, in one block or one per block in two, matched on keys that are the features."""
    x = torch.randn(1, 1, 4, 6, 8, generator=torch.Generator().manual_seed(seed))
    tokens = Tokens.from_cells(x)
    for layer in range(depth):
        tokens = MergeWindowsInEncoder(0.5, window=2)(tokens, keys=tokens.features, layer=layer, depth=depth)
    frame, expected = naive.frame_tokens(x[0].double().numpy(), 0), []
    for y in range(0, 4, 2):
        for column in range(0, 6, 2):
            window = [frame[i * 6 + j] for i in (y, y + 1) for j in (column, column + 1)]
            for target in (2,) if depth == 1 else (3, 2):
                window = naive.sort_by_position(naive.merge_down(window, target), (1, 4, 6))
            expected += window
    naive.assert_same_tokens(tokens, expected)


def test_keys_decide_and_features_are_averaged():
    keys = torch.tensor([[1.0, 0], [0, 1], [0.1, 1], [1, 0.1]])  # in the window, cell 0 is similar to 3 and 2 to 1
    features = torch.tensor([[1.0, 10], [2, 20], [3, 30], [4, 40]])
    out = MergeWindowsInEncoder(0.5, window=2)(
        Tokens.from_cells(features.reshape(1, 1, 2, 2, 2)), keys=keys[None], layer=0, depth=1
    )
    assert sorted(out.features[0].tolist()) == [[2.5, 25.0], [2.5, 25.0]]
    np.testing.assert_array_equal(out.assignment[0, [0, 1]], out.assignment[0, [3, 2]])


def test_an_unreachable_budget_is_an_error():
    tokens = Tokens.from_cells(torch.randn(1, 1, 4, 4, 8))
    with pytest.raises(ValueError, match=r"merge_windows_in_encoder.* cannot be reached in 1 blocks"):
        MergeWindowsInEncoder(0.25, window=4)(tokens, keys=tokens.features, layer=0, depth=1)
