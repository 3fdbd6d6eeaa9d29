"""2-D Gaussians, and their sum on a map."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fewtokens.core.shapes import shape_repr

# Scalars of a Gaussian in a token, all in 0..1: x, y, the two scales, the angle. Only `read_geometry` reads them.
GEOMETRY = 5
SHORTEST = 0.1


class Gaussians(NamedTuple):
    """Geometry of 2-D Gaussians on a map.

    Attributes:
        places: [...,2], x and y of the center in cells; the map begins at 0, and the center of its first cell is 0.5.
        scales: [...,2], standard deviations along the first and second axis, in cells.
        angles: [...], radians from the direction of x to the first axis, toward y.
    """

    places: Tensor
    scales: Tensor
    angles: Tensor

    def __repr__(self) -> str:
        return shape_repr(self)


def read_geometry(scalars: Tensor, height: int, width: int, longest: float) -> Gaussians:
    """Converts scalars [...,5] in 0..1 to Gaussians on a map of some height and width in cells.

    Scales are in 0.1..`longest` cells, and angles in 0..pi.
    """
    places = scalars[..., :2] * scalars.new_tensor([width, height])
    return Gaussians(places, SHORTEST + (longest - SHORTEST) * scalars[..., 2:4], torch.pi * scalars[..., 4])


def splat(features: Tensor, gaussians: Gaussians, height: int, width: int) -> Tensor:
    """Adds up Gaussians, whose maximum is 1, times their features.

    Args:
        features: [B,N,C].
        gaussians: the geometry of each, [B,N].
        height, width: of the map in cells.

    Returns:
        [B,C,height,width], at the centers of cells. The order of the Gaussians does not matter.
    """
    places, scales, angles = gaussians
    x = torch.arange(width, device=places.device) + 0.5 - places[..., :1]
    y = torch.arange(height, device=places.device) + 0.5 - places[..., 1:]
    x, y = x[:, :, None], y[..., None]
    cos, sin = angles.cos()[..., None, None], angles.sin()[..., None, None]
    first = (cos * x + sin * y) / scales[..., :1, None]
    second = (cos * y - sin * x) / scales[..., 1:, None]
    weights = (-(first.square() + second.square()) / 2).exp()
    return torch.einsum("bnc,bnhw->bchw", features, weights.to(features.dtype))
