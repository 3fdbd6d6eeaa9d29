"""Mean pooling against average pooling in three dimensions and loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.baselines.mean_pool import MeanPool
from tests.helpers import naive


def test_is_average_pooling_if_the_sides_divide():
    x = torch.randn(2, 4, 6, 8, 5)
    pooled = F.avg_pool3d(x.permute(0, 4, 1, 2, 3), 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(MeanPool(0.125)(Tokens.from_cells(x)).features, pooled)


@pytest.mark.parametrize(("keep", "shape"), [(8, (2, 2, 2)), (0.2, (3, 2, 2)), (2, (2, 1, 1)), (1, (1, 1, 1))])
def test_blocks_against_loops(keep, shape):
    """The grid 5 x 3 x 4."""
    tokens, x = naive.video(T=5, H=3, W=4)
    naive.assert_same_tokens(MeanPool(keep)(tokens), naive.blocks(x, shape))
    assert MeanPool(keep).planned_count(Grid(5, 3, 4)) == np.prod(shape)


def test_one_token_is_the_mean_of_the_video():
    tokens, x = naive.video()
    torch.testing.assert_close(MeanPool(1)(tokens).features[0, 0], torch.from_numpy(x.mean((0, 1, 2))).float())
