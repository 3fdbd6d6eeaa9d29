"""ToMe inside an encoder: the counts of published models."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core.tokens import Tokens
from fewtokens.methods.merging.tome_in_encoder import TomeInEncoder


# Tokens after the last block, including the class token, in published models.
@pytest.mark.parametrize(
    ("patches", "depth", "r", "final"),
    [(196, 12, 13, 41), (196, 12, 16, 11), (196, 24, 7, 29), (196, 24, 8, 7), (256, 32, 7, 33), (1024, 24, 40, 65)],
)
def test_token_counts_of_published_models(patches, depth, r, final):
    tokens = Tokens.from_cells(torch.randn(1, 1, 1, patches, 4), prefix=torch.zeros(1, 1, 4))
    method = TomeInEncoder(r=r)
    for layer in range(depth):
        tokens = method(tokens, keys=tokens.features, layer=layer, depth=depth)
    assert final == tokens.N + 1


@pytest.mark.parametrize("keep", [0.5, 0.1, 0.013])
def test_a_fraction_is_met_exactly(keep):
    tokens = Tokens.from_cells(torch.randn(2, 1, 14, 14, 4))
    method = TomeInEncoder(keep=keep)
    for layer in range(12):
        tokens = method(tokens, keys=tokens.features, layer=layer, depth=12)
    assert tokens.count.tolist() == [int(keep * 196)] * 2


def test_an_unreachable_budget_is_an_error():
    tokens = Tokens.from_cells(torch.randn(1, 1, 14, 14, 4))
    with pytest.raises(ValueError, match=r"tome_in_encoder.*cannot be reached"):
        for layer in range(2):
            tokens = TomeInEncoder(keep=0.01)(tokens, keys=tokens.features, layer=layer, depth=2)


def test_invalid_arguments():
    for arguments in ({"keep": 32}, {"keep": 0.5, "r": 8}, {"r": -1}):
        with pytest.raises(ValueError, match=r"tome_in_encoder|r must be"):
            TomeInEncoder(**arguments)
