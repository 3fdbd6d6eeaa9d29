"""The frozen image encoder on frames of a clip: sizes, and averages over regions."""

from __future__ import annotations

import pytest
import torch

from fewtokens.tokenizers.encoders.frozen_video import FrozenVideo

SMALL = {"stride": (2, 16, 16), "width": 32, "depth": 1, "hidden": 16, "layers": 1}


@torch.no_grad()
@pytest.mark.parametrize("patches", [1.0, 1.5, 2.0])
def test_grid_of_any_number_of_patches(patches):
    encoder = FrozenVideo(patches=patches, **SMALL).eval()
    assert encoder.latents(torch.zeros(2, 3, 4, 32, 48)).shape == (2, 16, 2, 2, 3)


@torch.no_grad()
def test_cells_average_patches():
    torch.manual_seed(0)
    encoder = FrozenVideo(patches=2.0, **{**SMALL, "layers": 0}).eval()
    x = torch.rand(1, 3, 2, 32, 32) * 2 - 1
    features = encoder.images.latents(x[:, :, 1:])[0, :, 0]  # the size is that of 4 x 4 patches of 8 pixels
    cells = features.unflatten(1, (2, 2)).unflatten(3, (2, 2)).mean((2, 4)).movedim(0, -1)
    expected = encoder.project(encoder.norm(cells)).movedim(-1, 0)
    torch.testing.assert_close(encoder.latents(x)[0, :, 0], expected, rtol=1e-4, atol=1e-5)


def test_invalid_arguments():
    with pytest.raises(ValueError, match="patches must be above 0"):
        FrozenVideo(patches=0.0, **SMALL)
