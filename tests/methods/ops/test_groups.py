"""Allocation of a budget among groups."""

from __future__ import annotations

import pytest
import torch

from fewtokens.methods.ops.groups import allocate
from tests.helpers import naive


@pytest.mark.parametrize("total", [1, 3, 7, 12, 20])
def test_allocation_against_loops(total):
    sizes, weights = [5, 0, 2, 13], [1.0, 9.0, 4.0, 2.5]
    for weight in (None, weights):
        counts = allocate(
            torch.tensor([total]), torch.tensor([sizes]), None if weight is None else torch.tensor([weight])
        )
        assert counts[0].tolist() == naive.allocate(total, sizes, weight)
