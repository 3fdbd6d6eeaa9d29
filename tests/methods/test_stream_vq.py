"""Stream VQ: a codebook per stream, one code per token, bits of each."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.quantizers.stream_vq import StreamVq


def build() -> StreamVq:
    torch.manual_seed(0)
    return StreamVq((16, 4), dim=4, code_dim=4, rows=2).eval()


def test_the_nearest_entry_of_the_codebook_of_the_stream():
    method = build()
    tokens = method(Tokens.from_cells(torch.randn(2, 3, 2, 2, 4)))
    again = method(Tokens.from_cells(torch.randn(2, 3, 2, 2, 4)))
    assert not torch.equal(tokens.codes, again.codes)
    x = torch.randn(2, 12, 4)
    features, codes, _ = method.quantize(x, None, Grid(3, 2, 2))
    for stream, part in enumerate((slice(8), slice(8, None))):
        table = method.codebooks[stream].table
        expected = torch.cdist(x[:, part], table.expand(2, -1, -1)).argmin(-1)
        assert torch.equal(codes[:, part, stream], expected)
        assert bool((codes[:, part, 1 - stream] == -1).all())
        torch.testing.assert_close(features[:, part], table[expected])
    assert method.planned_bits(Grid(3, 2, 2), 12) == 8 * 4 + 4 * 2
    assert method.count_bits(tokens).tolist() == [40, 40]


def test_one_stream_only():
    """A keyframe without motion, also in training: the other codebook has no loss."""
    method = build().train()
    x = torch.randn(1, 4, 4, requires_grad=True)
    _, codes, losses = method.quantize(x, None, Grid(1, 2, 2))
    assert bool((codes[..., 1] == -1).all())
    assert set(losses) == {"codebook0", "commitment0"}
    assert method.planned_bits(Grid(1, 2, 2), 4) == 16
    with pytest.raises(ValueError, match="two numbers"):
        StreamVq((16,))
