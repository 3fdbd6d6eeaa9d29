"""Deformable queries against loops; bilinear lookups; what a query depends on."""

from __future__ import annotations

import numpy as np
import torch

from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.learned.deformable_queries import DeformableAttention, DeformableQueries
from tests.helpers.clips import clip


def bilinear(image: np.ndarray, x: float, y: float) -> np.ndarray:
    """The value of an image [H,W,C] at x and y in cells, whose centers are at whole numbers; the edge outside."""
    H, W = image.shape[:2]
    x, y = min(max(x, 0), W - 1), min(max(y, 0), H - 1)
    i, j = int(y), int(x)
    i2, j2, a, b = min(i + 1, H - 1), min(j + 1, W - 1), y - int(y), x - int(x)
    rows = [image[k, j] * (1 - b) + image[k, j2] * b for k in (i, i2)]
    return rows[0] * (1 - a) + rows[1] * a


def identity(layer: torch.nn.Linear) -> None:
    torch.nn.init.eye_(layer.weight)
    torch.nn.init.zeros_(layer.bias)


def test_without_offsets_one_point_is_a_bilinear_lookup():
    attention = DeformableAttention(6, 2, 1, 1).double()
    identity(attention.value)
    identity(attention.out)
    torch.nn.init.zeros_(attention.offsets.bias)
    features = torch.randn(2, 1, 4, 5, 6, dtype=torch.float64)
    places = torch.rand(7, 2, dtype=torch.float64)
    out = attention(torch.randn(2, 7, 6, dtype=torch.float64), places, features)
    for f in range(2):
        for m, (x, y) in enumerate(places.tolist()):
            expected = bilinear(features[f, 0].numpy(), 5 * x - 0.5, 4 * y - 0.5)
            np.testing.assert_allclose(out[f, m].detach().numpy(), expected, atol=1e-12)


def test_attention_against_loops():
    torch.manual_seed(0)
    heads, levels, points = 2, 3, 2
    attention = DeformableAttention(4, heads, levels, points).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    features, queries = torch.randn(1, levels, 3, 4, 4).double(), torch.randn(1, 5, 4).double()
    places, maps = torch.rand(5, 2).double(), torch.zeros(1, 5, 12).double()
    out = attention(queries, places, features, maps)
    value = attention.value(features)[0].detach().numpy()
    offsets = attention.offsets(queries)[0].reshape(5, heads, levels, points, 2).tolist()
    logits = attention.weights(queries)[0].reshape(5, heads, levels * points)
    weights = logits.softmax(-1).reshape(5, heads, levels, points).tolist()
    for m in range(5):
        mixed, cells = np.zeros((heads, 2)), np.zeros((3, 4))
        for h in range(heads):
            for level in range(levels):
                for p in range(points):
                    x = 4 * places[m, 0].item() + offsets[m][h][level][p][0] - 0.5
                    y = 3 * places[m, 1].item() + offsets[m][h][level][p][1] - 0.5
                    weight = weights[m][h][level][p]
                    mixed[h] += weight * bilinear(value[level][..., 2 * h : 2 * h + 2], x, y)
                    cells += weight / heads * bilinear(np.eye(12).reshape(3, 4, 12), x, y).reshape(3, 4)
        expected = attention.out(torch.tensor(mixed.reshape(1, 4)))[0]
        torch.testing.assert_close(out[0, m], expected)
        np.testing.assert_allclose(maps[0, m].numpy(), cells.flatten(), atol=1e-12)


def test_count_channels_and_attribution():
    method = DeformableQueries("9/frame", dim=8, width=6, levels=2, layers=2, heads=2, points=2)
    for size in ((2, 4, 5), (1, 7, 3)):
        out = method(clip(*size, 8, 2)).check()
        assert out.features.shape == (2, 9 * size[0], method.out_dim) == (2, 9 * size[0], 6)
        torch.testing.assert_close(out.attribution.sum(-1), torch.ones(2, 9 * size[0]))


def test_a_query_depends_only_on_the_cells_it_samples():
    torch.manual_seed(0)
    method = DeformableQueries("4/frame", dim=8, layers=2, heads=2, points=1)
    x = torch.randn(1, 1, 12, 12, 8)
    before = method(Tokens.from_cells(x))
    seen = before.attribution[0].reshape(4, 12, 12) > 0
    changed = torch.where(seen[0][None, None, ..., None], x, torch.randn_like(x))
    after = method(Tokens.from_cells(changed.flatten(1, 3), Grid(1, 12, 12)))
    assert torch.equal(before.features[0, 0], after.features[0, 0])
    assert not torch.allclose(before.features[0, 3], after.features[0, 3])


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    method = DeformableQueries("4/frame", dim=8, layers=2, heads=2, points=2, levels=2)
    for layer in method.stack:
        torch.nn.init.normal_(layer.attention.offsets.weight, std=0.1)
        torch.nn.init.normal_(layer.attention.weights.weight, std=0.1)
    out = method(clip(2, 5, 5, 8, 2)).features
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in method.named_parameters():
        assert float(parameter.grad.abs().max()) > 0, name
