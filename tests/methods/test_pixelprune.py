"""PixelPrune on the examples of the specification, and against a double loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewtokens.core.tokens import Tokens
from fewtokens.methods.pruning.pixelprune import PixelPrune, _equal_sources


def gray(values: torch.Tensor) -> tuple[Tokens, torch.Tensor]:
    """Frames [T,H,W] of cells of one value, and their pixels."""
    T, H, W = values.shape
    pixels = values.reshape(1, T * H * W, 1, 1).expand(-1, -1, 1, 12)
    return Tokens.from_cells(values.reshape(1, T, H, W, 1)), pixels


def kept(values: torch.Tensor, tau: float = 0.0) -> list[int]:
    tokens, pixels = gray(values)
    return PixelPrune(tau)(tokens, pixels=pixels).cell[0].tolist()


def test_images_by_hand():
    rectangle = torch.zeros(1, 4, 5)
    rectangle[:, 1:3, 1:4] = 1
    assert kept(rectangle) == [0, 6, 9, 16]
    halves = torch.zeros(1, 4, 6)
    halves[..., 3:] = 1
    assert len(kept(halves)) == 2
    assert kept(torch.full((1, 3, 3), 0.5)) == [0]


def test_small_differences_do_not_add_up():
    ramp = torch.tensor([0.0, 0.08, 0.16, 0.24, 0.32]).reshape(1, 1, 5)
    assert kept(ramp, 0.1) == [0, 2, 4]


@pytest.mark.parametrize("tau", [0.0, 0.15, 0.4])
def test_against_a_double_loop(tau):
    generator = torch.Generator().manual_seed(4)
    values = torch.randint(0, 5, (3, 5, 4), generator=generator) / 5 + 0.02 * torch.rand(3, 5, 4, generator=generator)
    if tau == 0:
        values = (values * 2).round() / 2
    tokens, pixels = gray(values)
    out = PixelPrune(tau)(tokens, pixels=pixels)
    survivors, stored = [], np.zeros(values.shape, dtype=np.float32)
    for t, y, x in np.ndindex(*values.shape):
        value, prediction = float(values[t, y, x]), None
        if y or x:
            a, b = stored[t, y, x - 1], stored[t, y - 1, x]
            use_b = x == 0 or (y > 0 and abs(stored[t, y - 1, x - 1] - a) <= tau < abs(stored[t, y - 1, x - 1] - b))
            prediction = float(b if use_b else a)
        if prediction is None or abs(value - prediction) > tau:
            survivors.append((t * 5 + y) * 4 + x)
            prediction = value
        stored[t, y, x] = prediction
    assert out.cell[0].tolist() == survivors
    restored = out.unmerge().flatten()
    np.testing.assert_array_equal(restored.numpy(), stored.reshape(-1))
    assert float((restored - values.flatten()).abs().amax()) <= tau
    assert int(out.sizes.sum()) == values.numel()


def test_negative_thresholds_are_an_error():
    with pytest.raises(ValueError, match="tau must be at least 0"):
        PixelPrune(-0.1)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (6, 1), (5, 8), (9, 4)])
def test_all_cells_at_once_are_the_cells_one_diagonal_after_another(shape):
    H, W = shape
    torch.manual_seed(0)
    # Few values, so that runs of equal cells and corners occur.
    values = torch.randint(2, (40, H * W, 1)).float().repeat(1, 1, 3)
    assert torch.equal(_equal_sources(values, H, W), PixelPrune(0.0)._sources(values, H, W))
