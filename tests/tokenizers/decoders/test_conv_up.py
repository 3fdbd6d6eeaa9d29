"""Convolutional encoder and decoder of images: sizes, channels that are read, frames that do not mix."""

from __future__ import annotations

import pytest
import torch

from fewtokens.tokenizers.decoders.conv_up import ConvUp
from fewtokens.tokenizers.encoders.conv_down import ConvDown


def test_a_cell_is_a_patch():
    torch.manual_seed(0)
    encoder = ConvDown(5, widths=(4, 4, 8), blocks=1)
    x = torch.randn(2, 3, 3, 8, 12)
    z = encoder.latents(x)
    assert encoder.stride == (1, 4, 4)
    assert z.shape == (2, 5, 3, 2, 3)
    decoder = ConvUp(5, stride=(1, 4, 4), widths=(8, 4, 4), blocks=1)
    assert decoder.pixels_of(z).shape == x.shape
    # Each frame is encoded and decoded alone.
    torch.testing.assert_close(encoder.latents(x[:, :, 1:2]), z[:, :, 1:2])
    torch.testing.assert_close(decoder.pixels_of(z[:1, :, 2:]), decoder.pixels_of(z)[:1, :, 2:], atol=1e-5, rtol=1e-5)


def test_cells_that_are_not_patches_are_resized_and_cropped():
    torch.manual_seed(0)
    decoder = ConvUp(4, stride=(1, 3, 3), widths=(8, 4, 4), blocks=1)
    z = torch.randn(1, 4, 1, 5, 4)  # 15 x 12 pixels: 4 x 3 patches of 4
    patches = torch.nn.functional.interpolate(z[:, :, 0], (4, 3), mode="bilinear")
    expected = decoder.to_pixels(patches)[:, :, :15, :12]
    torch.testing.assert_close(decoder.pixels_of(z)[:, :, 0], expected)


def test_only_the_first_channels_are_read():
    decoder = ConvUp(6, stride=(1, 2, 2), widths=(4, 4), blocks=1, channels=2)
    z = torch.randn(1, 6, 1, 2, 2)
    other = torch.cat([z[:, :2], torch.randn(1, 4, 1, 2, 2)], 1)
    assert torch.equal(decoder.pixels_of(z), decoder.pixels_of(other))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stride": (2, 4, 4)}, "stride must be 1 frame"),
        ({"channels": 9}, "channels must be in 1..4"),
        ({"widths": ()}, "widths and blocks must be at least 1"),
        ({"blocks": 0}, "widths and blocks must be at least 1"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConvUp(4, **arguments)
