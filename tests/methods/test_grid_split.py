"""Pooling to rows and columns against adaptive average pooling."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewtokens.methods.pooling.grid_split import GridSplit, rows_and_columns


@pytest.mark.parametrize(
    ("tokens", "shape", "expected"), [(8, (8, 8), (2, 4)), (4, (8, 8), (2, 2)), (8, (4, 16), (1, 8))]
)
def test_grid_split(tokens, shape, expected):
    assert rows_and_columns(tokens, *shape) == expected
    x = torch.randn(1, *shape, 3)
    z, _ = GridSplit(f"{tokens}/frame").learn(x)
    pooled = nn.functional.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), expected).flatten(2).transpose(1, 2)
    torch.testing.assert_close(z, pooled)
