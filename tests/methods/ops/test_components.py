"""Connected components against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewtokens.methods.ops import components as module
from fewtokens.methods.ops.components import by_cosine
from tests.helpers.components import connected_components


@pytest.mark.parametrize("tau", [-1.0, 0.3, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("block", [1, 1 << 22])
def test_components_against_scipy(tau, block, monkeypatch):
    monkeypatch.setattr(module, "_MAX_BLOCK_ENTRIES", block)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 40, 4, generator=generator)
    mask = torch.ones(3, 40, dtype=torch.bool)
    mask[1, 25:] = False
    label = by_cosine(x, mask, torch.full((3,), tau))
    for b, n in enumerate((40, 25, 40)):
        assert label[b, :n].tolist() == connected_components(x[b, :n].double().numpy(), tau).tolist()


def test_a_long_chain():
    """Each token is similar only to the next: the worst case for label propagation."""
    angle = torch.arange(300) * 0.01
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    x = torch.stack([angle.cos(), angle.sin()], 1)[order][None]
    label = by_cosine(x, torch.ones(1, 300, dtype=torch.bool), torch.tensor([float(np.cos(0.011))]))
    assert bool((label == 0).all())
