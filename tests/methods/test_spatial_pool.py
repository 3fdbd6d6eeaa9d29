"""Spatial pooling is average pooling."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fewtokens
from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.pooling.spatial_pool import SpatialPool


def test_spatial_pool_is_average_pooling():
    x = torch.randn(2, 6, 8, 3)
    pooled = nn.functional.avg_pool2d(x.permute(0, 3, 1, 2), 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(SpatialPool(2).learn(x)[0], pooled)
    # Windows wider than the stride, and borders averaged over the patches inside the frame.
    wide = nn.functional.avg_pool2d(x.permute(0, 3, 1, 2), 3, 1, 1, count_include_pad=False).flatten(2).transpose(1, 2)
    torch.testing.assert_close(SpatialPool(1, side=3).learn(x)[0], wide)
    assert SpatialPool(3).planned_count(Grid(2, 7, 5)) == 2 * 3 * 2


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (4, 5)])
def test_windows_smaller_than_the_stride(size):
    """The last one may begin after the last patch."""
    tokens = Tokens.from_cells(torch.randn(1, 2, *size, 4))
    out = fewtokens.create_method("spatial_pool", stride=2, side=1)(tokens).check()
    assert bool(out.features.isfinite().all())
    assert out.count.tolist() == [2 * -(-size[0] // 2) * -(-size[1] // 2)]
