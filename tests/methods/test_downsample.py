"""Downsampling against average pooling and loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.baselines.downsample import Downsample
from tests.helpers import naive


def test_is_average_pooling_if_the_sides_divide():
    x = torch.randn(2, 3, 6, 8, 5)
    pooled = F.avg_pool2d(x.flatten(0, 1).permute(0, 3, 1, 2), 2).flatten(2).transpose(1, 2).reshape(2, 36, 5)
    torch.testing.assert_close(Downsample(0.25)(Tokens.from_cells(x)).features, pooled)


@pytest.mark.parametrize(
    ("keep", "shape"), [(0.4, (4, 3, 4)), (24, (4, 2, 3)), (4, (4, 1, 1)), (3, (3, 1, 1)), (1, (1, 1, 1))]
)
def test_blocks_against_loops(keep, shape):
    """The grid 4 x 5 x 6; time shrinks only when there are fewer tokens than frames."""
    tokens, x = naive.video(T=4, H=5, W=6)
    naive.assert_same_tokens(Downsample(keep)(tokens), naive.blocks(x, shape))
    assert Downsample(keep).planned_count(Grid(4, 5, 6)) == np.prod(shape)
