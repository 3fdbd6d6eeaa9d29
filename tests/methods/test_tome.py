"""ToMe against worked examples."""

from __future__ import annotations

import pytest
import torch

import fewtokens
from fewtokens.core.batch import collate
from fewtokens.core.tokens import Tokens
from fewtokens.methods.merging.tome import Tome
from tests.helpers.clips import clip


def test_invalid_arguments():
    with pytest.raises(ValueError, match="tome: keep"):
        Tome(0)


def test_merges_equal_frames_first():
    """Two copies of a frame merge into one without error: with an odd frame size the copies alternate."""
    frame = torch.randn(1, 1, 5, 3, 32)
    out = Tome(keep=15)(Tokens.from_cells(frame.expand(1, 2, 5, 3, 32)))
    torch.testing.assert_close(out.unmerge()[0], frame[0].expand(2, 5, 3, 32), rtol=1e-5, atol=1e-5)


def test_merged_rows_are_within_the_range_of_their_members():
    tokens = clip(B=1)
    out = Tome(keep=0.2)(tokens)
    for m in range(out.N):
        members = tokens.features[0, out.assignment[0] == m]
        assert bool((out.features[0, m] <= members.amax(0) + 1e-5).all())
        assert bool((out.features[0, m] >= members.amin(0) - 1e-5).all())


@pytest.mark.parametrize("prefix", [1, 2])
def test_prefix_tokens_of_a_video_change_nothing(prefix):
    """Nor does a longer video in the batch, with which the first one is split into windows."""
    method = fewtokens.create_method("tome", keep=0.3, window=4)
    first, second = (torch.randn(1, T, 3, 3, 8, generator=torch.Generator().manual_seed(T)) for T in (4, 8))
    short, long = (Tokens.from_cells(x, prefix=torch.randn(1, prefix, 8)) for x in (first, second))
    expected = method(Tokens.from_cells(first))
    assert torch.equal(method(short).assignment, expected.assignment)
    assert torch.equal(method(collate([short, long]))[0].assignment[:, :36], expected.assignment)
