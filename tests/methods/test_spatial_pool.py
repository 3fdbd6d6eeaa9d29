"""Spatial pooling is average pooling."""

from __future__ import annotations

import torch
from torch import nn

from fewtokens.core.grid import Grid
from fewtokens.methods.pooling.spatial_pool import SpatialPool


def test_spatial_pool_is_average_pooling():
    x = torch.randn(2, 6, 8, 3)
    pooled = nn.functional.avg_pool2d(x.permute(0, 3, 1, 2), 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(SpatialPool(2).learn(x)[0], pooled)
    # Windows wider than the stride, and borders averaged over the patches inside the frame.
    wide = nn.functional.avg_pool2d(x.permute(0, 3, 1, 2), 3, 1, 1, count_include_pad=False).flatten(2).transpose(1, 2)
    torch.testing.assert_close(SpatialPool(1, side=3).learn(x)[0], wide)
    assert SpatialPool(3).planned_count(Grid(2, 7, 5)) == 2 * 3 * 2
