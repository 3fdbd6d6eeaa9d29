"""INTP's subsets on the example of the specification."""

from __future__ import annotations

import pytest
import torch

from fewtokens.methods.ops.interleave import split_subsets
from fewtokens.methods.selection.intp import Intp


def test_subsets_of_sixteen_frames():
    selection = Intp(2, frames=8).select(torch.arange(200))
    assert len(selection) == 16
    subset = selection.why["subset"]
    for number, part in enumerate(split_subsets(selection.index, 2)):
        assert torch.equal(selection.index[subset == number], part) and len(part) == 8
    assert Intp(2).select(torch.arange(16)).why["subset"].tolist() == [0, 1] * 8
    assert Intp(2).select(torch.arange(3)).why["subset"].tolist() == [0, 1, 0]
    assert Intp(1, frames=5).select(torch.arange(9)).index.tolist() == [0, 2, 4, 6, 8]


def test_arguments():
    with pytest.raises(ValueError, match="at least 1"):
        Intp(0)
