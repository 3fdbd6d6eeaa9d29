"""The cue `pixels` from what an encoder receives."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core.cell_pixels import cell_pixels, packed_pixels, to_unit_pixels
from fewtokens.core.grid import Grid

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def given(unit: torch.Tensor, kind: str, channel: int) -> torch.Tensor:
    """Pixels in 0..1 as an encoder receives them."""
    if kind == "uint8":
        return (unit * 255).round().to(torch.uint8)
    shape = [3 if axis == channel else 1 for axis in range(unit.ndim)]
    return (unit - torch.tensor(MEAN).reshape(shape)) / torch.tensor(STD).reshape(shape)


@pytest.mark.parametrize("kind", ["uint8", "normalized"])
def test_pixels_of_packed_patches(kind):
    """A video of 4 frames of 8 x 12 pixels: patches of 2 x 2 pixels and 2 frames, cells of 2 x 2 patches."""
    frames = torch.rand(4, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    packed, expected = [], []
    for t in range(2):
        for y in range(2):
            for x in range(3):
                cell = frames[2 * t : 2 * t + 2, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]  # frame, channel, row, column
                corners = [(0, 0), (0, 2), (2, 0), (2, 2)]
                packed += [cell[..., i : i + 2, j : j + 2].transpose(0, 1).flatten() for i, j in corners]
                patches = [cell[..., i : i + 2, j : j + 2].permute(0, 2, 3, 1).flatten(1) for i, j in corners]
                expected.append(torch.cat(patches, 1))
    pixels = given(torch.stack(packed).unflatten(1, (3, -1)), kind, channel=1).flatten(1)
    out = packed_pixels(pixels, 6 * 2, 2, MEAN, STD)
    torch.testing.assert_close(sort_pixels(out), sort_pixels(torch.stack(expected)), rtol=0, atol=0.003)


def sort_pixels(cells: torch.Tensor) -> torch.Tensor:
    """The pixels of each cell in any order, without mixing frames or channels."""
    return cells.unflatten(2, (-1, 3)).sort(dim=2).values


@pytest.mark.parametrize("kind", ["uint8", "normalized"])
def test_pixels_of_frames(kind):
    """Cells of one color each."""
    colors = torch.rand(2, 3, 3, 3, generator=torch.Generator().manual_seed(1))  # frame, channel, row, column
    frames = colors.repeat_interleave(8, 2).repeat_interleave(8, 3)
    out = cell_pixels(to_unit_pixels(given(frames, kind, channel=1), MEAN, STD), Grid(2, 3, 3))
    assert out.shape == (18, 1, 8 * 8 * 3)
    by_cell = out.unflatten(2, (-1, 3)).mean((1, 2)).reshape(2, 3, 3, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(by_cell, colors, rtol=0, atol=0.003)
