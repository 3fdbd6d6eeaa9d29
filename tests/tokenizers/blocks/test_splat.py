"""The splat: symmetry, integral, order, and the places of cells."""

from __future__ import annotations

import math

import torch

from fewtokens.tokenizers.blocks.splat import Gaussians, read_geometry, splat


def render(x: float, y: float, s1: float, s2: float, angle: float, height: int = 32, width: int = 32) -> torch.Tensor:
    tensors = (torch.tensor(value, dtype=torch.float64) for value in ([[[x, y]]], [[[s1, s2]]], [[angle]]))
    return splat(torch.ones(1, 1, 1, dtype=torch.float64), Gaussians(*tensors), height, width)[0, 0]


def test_a_right_angle_swaps_the_scales():
    torch.testing.assert_close(
        render(14.3, 17.1, 2.5, 0.7, 0.4 + math.pi / 2), render(14.3, 17.1, 0.7, 2.5, 0.4), atol=1e-7, rtol=0
    )


def test_the_integral_inside_the_map():
    assert math.isclose(float(render(15.2, 16.9, 2.5, 1.5, 0.8).sum()), 2 * math.pi * 2.5 * 1.5, rel_tol=1e-6)
    # Cut off at the edges of a map of 2 x 2 units of 64 cells: erf(s / sqrt 2) within s deviations, on each axis.
    cut = float(render(64, 64, 32, 16, 0, 128, 128).sum()) / 64**2
    inside = math.erf(2 / math.sqrt(2)) * math.erf(4 / math.sqrt(2))
    assert math.isclose(cut, 2 * math.pi * 0.125 * inside, rel_tol=1e-3)
    assert math.isclose(cut, 0.750, abs_tol=1e-3)


def test_against_the_inverse_covariance_at_each_cell():
    torch.manual_seed(0)
    scalars, features = torch.rand(2, 3, 5), torch.randn(2, 3, 4)
    found = splat(features, read_geometry(scalars, 4, 6, 3.0), 4, 6)
    expected = torch.zeros(2, 4, 4, 6)
    for b in range(2):
        for n in range(3):
            x, y, s1, s2, angle = scalars[b, n].tolist()
            c, s = math.cos(math.pi * angle), math.sin(math.pi * angle)
            axes = torch.tensor([[c, -s], [s, c]])
            inverse = (axes @ torch.diag(torch.tensor([0.1 + 2.9 * s1, 0.1 + 2.9 * s2]).square()) @ axes.T).inverse()
            for i in range(4):
                for j in range(6):
                    d = torch.tensor([j + 0.5 - 6 * x, i + 0.5 - 4 * y])
                    expected[b, :, i, j] += features[b, n] * torch.exp(-0.5 * d @ inverse @ d)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
