"""Places of a budget, shared out among groups."""

from __future__ import annotations

import pytest
import torch

from fewtokens.methods.ops.groups import share_out
from tests.helpers import naive


@pytest.mark.parametrize("total", [1, 3, 7, 12, 20])
def test_places_are_shared_out(total):
    sizes, weights = [5, 0, 2, 13], [1.0, 9.0, 4.0, 2.5]
    for weight in (None, weights):
        ours = share_out(
            torch.tensor([total]), torch.tensor([sizes]), None if weight is None else torch.tensor([weight])
        )
        assert ours[0].tolist() == naive.share(total, sizes, weight)
