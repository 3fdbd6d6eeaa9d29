"""Dynamic pooling against average pooling."""

from __future__ import annotations

import torch

from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.pooling.dynamic_pool import DynamicPool


def test_dynamic_pool():
    """T=32 gives 64 tokens per frame, T=200 gives 9; if the sides divide, it is average pooling."""
    assert DynamicPool().planned_count(Grid(32, 24, 24)) == 32 * 64
    assert DynamicPool().planned_count(Grid(200, 24, 24)) == 200 * 9
    assert DynamicPool().planned_count(Grid(1, 24, 24)) == 144
    x = torch.randn(1, 2, 6, 6, 3)
    out = DynamicPool(18)(Tokens.from_cells(x))
    pooled = torch.nn.functional.avg_pool2d(x[0].permute(0, 3, 1, 2), 2).flatten(2).transpose(1, 2).reshape(1, -1, 3)
    torch.testing.assert_close(out.features, pooled)
