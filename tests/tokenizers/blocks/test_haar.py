"""The Haar transform of Cosmos: exact inverse, mean and differences."""

from __future__ import annotations

import pytest
import torch

from fewtokens.tokenizers.blocks.haar import haar, inverse_haar


@pytest.mark.parametrize("levels", [1, 2])
def test_the_inverse_is_exact(levels):
    x = torch.randn(2, 3, 4, 8, 12)
    bands = haar(x, levels)
    assert bands.shape == (2, 3 * 8**levels, 4 // 2**levels, 8 // 2**levels, 12 // 2**levels)
    torch.testing.assert_close(inverse_haar(bands, levels), x, atol=1e-6, rtol=0)


def test_the_first_channels_are_means():
    x = torch.randn(1, 3, 4, 4, 4)
    torch.testing.assert_close(haar(x, 2)[:, :3], torch.nn.functional.avg_pool3d(x, 4))


def test_a_single_difference():
    """A change in time alone is only in the band of time."""
    x = torch.zeros(1, 1, 2, 2, 2)
    x[:, :, 0], x[:, :, 1] = 3, 1
    assert haar(x, 1).flatten().tolist() == [2, 0, 0, 0, 1, 0, 0, 0]
