"""Interleaved subsets on the example of the specification."""

from __future__ import annotations

import pytest
import torch

from fewtokens.methods.ops.interleave import extended_rope_base, interleave, split_subsets


def test_evens_and_odds():
    assert [part.tolist() for part in split_subsets(torch.arange(16), 2)] == [
        list(range(0, 16, 2)), list(range(1, 16, 2)),
    ]  # fmt: skip


@pytest.mark.parametrize(("T", "subsets"), [(16, 2), (16, 1), (10, 3), (5, 5)])
def test_interleaving_is_the_inverse(T, subsets):
    x = torch.randn(T, 4)
    assert torch.equal(interleave(split_subsets(x, subsets)), x)
    encoder = torch.nn.Linear(4, 3)
    encoded = interleave([encoder(part) for part in split_subsets(x, subsets)])
    torch.testing.assert_close(encoded, encoder(x))


def test_the_base_of_rotary_positions():
    assert extended_rope_base(1e4, 4, 128) == pytest.approx(40889.9, abs=0.1)
    assert extended_rope_base(1e4, 8, 128) == pytest.approx(82684.6, abs=0.1)
    assert extended_rope_base(1e4, 1, 128) == 1e4


def test_more_subsets_than_frames():
    with pytest.raises(ValueError, match=r"subsets must be in 1\.\.3"):
        split_subsets(torch.zeros(3), 4)
