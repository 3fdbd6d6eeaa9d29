"""Representation Shift: the tokens that changed most, against a sorted list."""

from __future__ import annotations

import pytest
import torch

from fewtokens.methods.pruning.representation_shift import RepresentationShift
from tests.helpers.clips import clip


@pytest.mark.parametrize(("keep", "count"), [(0.25, 30), (7, 7), (1, 1), (1.0, 120)])
def test_against_a_sorted_list(keep, count):
    tokens = clip(4, 5, 6)
    shift = torch.rand(2, 120, generator=torch.Generator().manual_seed(0))
    shift[:, 40] = shift[:, 90] = 2  # ties go to the first
    out = RepresentationShift(keep)(tokens, shift=shift)
    for b in range(2):
        row = shift[b].tolist()
        expected = sorted(sorted(range(120), key=lambda n: -row[n])[:count])
        assert out.cell[b].tolist() == expected
        assert torch.equal(out.features[b], tokens.features[b, expected])
