"""Baselines: their bits, and their error against a calculation in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewtokens.evaluation.reconstruction.baselines import area_pooling, mean_color, mean_frame, repeat_first
from tests.evaluation.reconstruction.scenes import moving_texture


def error(frames: torch.Tensor, reconstruction: torch.Tensor) -> float:
    return float((frames - reconstruction).square().mean())


def test_simple_baselines_have_the_error_of_the_variance():
    frames = moving_texture(frames=5, height=12, width=20)
    x = frames.numpy()
    color, still, first = mean_color(frames), mean_frame(frames), repeat_first(frames)
    assert (color.bits, still.bits, first.bits) == (24, 24 * 240, 24 * 240)
    assert error(frames, color.frames) == pytest.approx(x.var((0, 2, 3)).mean(), abs=1e-5)
    assert error(frames, still.frames) == pytest.approx(x.var(0).mean(), abs=1e-5)
    assert error(frames, first.frames) == pytest.approx(((x - x[:1]) ** 2).mean(), abs=1e-4)
    assert error(frames, still.frames) < error(frames, first.frames)
    for each in (color, still, first):
        assert each.frames.shape == frames.shape
        levels = each.frames.numpy() * 255
        assert np.abs(levels - levels.round()).max() < 1e-4


def test_area_pooling_is_the_mean_of_blocks():
    """On a clip that is constant in blocks, the stored colors are those of the blocks."""
    colors = (torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    frames = colors.repeat_interleave(4, 0).repeat_interleave(8, 2).repeat_interleave(8, 3)
    coded = area_pooling(frames, 2 * 4 * 4 * 24)
    assert coded.settings["grid"] == "2x4x4" and coded.bits == 768 and coded.header_bits == 48
    expected = torch.nn.functional.interpolate(colors.transpose(0, 1)[None], size=(8, 32, 32), mode="trilinear")
    torch.testing.assert_close(coded.frames, expected[0].transpose(0, 1))
    assert area_pooling(frames, 24).settings["grid"] == "1x1x1"
    torch.testing.assert_close(area_pooling(frames, 24).frames, mean_color(frames).frames)
    everything = area_pooling(frames, 1e9)
    assert everything.bits == 24 * frames[:, 0].numel()
    torch.testing.assert_close(everything.frames, frames)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (18, 40), (40, 18), (4, 64), (1, 50)])
def test_area_pooling_uses_its_budget(height, width):
    frames = moving_texture(frames=7, height=max(height, 4), width=width)[:, :, :height]
    previous = 1.0
    for cells in (1, 5, 24, 100, 500):
        budget = cells * 24 + 13
        coded = area_pooling(frames, budget)
        # A row or column of the grid less than the budget allows.
        assert coded.bits <= budget and coded.bits > 0.4 * min(budget, 24 * frames[:, 0].numel())
        assert coded.frames.shape == frames.shape
        assert error(frames, coded.frames) < previous + 1e-3
        previous = error(frames, coded.frames)


def test_time_is_pooled_where_nothing_moves():
    still = moving_texture(frames=1).expand(8, -1, -1, -1)
    assert area_pooling(still, 24 * 256).settings["grid"] == "1x16x16"
    flash = torch.linspace(0, 1, 8)[torch.tensor([0, 7, 1, 6, 2, 5, 3, 4])][:, None, None, None].expand(8, 3, 16, 16)
    assert str(area_pooling(flash, 24 * 8).settings["grid"]).startswith("8x")


def test_bad_input():
    frames = moving_texture(frames=2)
    with pytest.raises(ValueError, match="at least one color, 24 bits, got a budget of 23"):
        area_pooling(frames, 23)
    for call in (mean_color, mean_frame, repeat_first):
        with pytest.raises(ValueError, match=r"float \[T,3,H,W\]"):
            call((frames * 255).byte())
