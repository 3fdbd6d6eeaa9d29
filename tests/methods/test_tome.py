"""ToMe against worked examples."""

from __future__ import annotations

import pytest
import torch

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
