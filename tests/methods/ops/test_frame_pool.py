"""Pooling of frames to a constant number of tokens."""

from __future__ import annotations

import pytest
import torch

from fewtokens.methods.ops.frame_pool import pool_frame, pool_shape


@pytest.mark.parametrize(
    ("P", "H", "W", "count", "shape"),
    [
        (144, 12, 12, 16, (4, 4)),
        (128, 4, 32, 32, (4, 8)),
        (6, 2, 3, 6, (2, 3)),
        (6, 2, 3, 5, (1, 5)),  # no rectangle
        (5, 2, 3, 4, (1, 4)),  # not one token per cell
    ],
)
def test_shapes(P, H, W, count, shape):
    assert pool_shape(P, H, W, count) == shape
    x = torch.arange(2 * P).float().reshape(1, 2, P, 1)
    out = pool_frame(x, H, W, count)
    assert out.shape == (1, 2, count, 1)
    if shape[0] > 1:
        rows, columns = shape
        expected = x.reshape(2, rows, H // rows, columns, W // columns).mean((2, 4)).reshape(out.shape)
        assert torch.equal(out, expected)
    else:
        # Token i is the mean from floor(i*P/count) up to but not including ceil((i+1)*P/count).
        expected = [x[0, 1, i * P // count : -(-(i + 1) * P // count)].mean().item() for i in range(count)]
        assert out[0, 1, :, 0].tolist() == expected
