"""Dual VQ: one index for two codebooks, the weight between them, residual levels."""

from __future__ import annotations

import pytest
import torch

from fewtokens.methods.quantizers.dual_vq import DualVq


def build(weight: float = 1.0, levels: int = 1) -> DualVq:
    torch.manual_seed(0)
    return DualVq(30, dim=6, code_dim=3, weight=weight, levels=levels).eval()


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, 1e6])
def test_the_index_with_the_smallest_weighted_distance(weight):
    method = build(weight)
    x = torch.randn(2, 20, 6)
    features, codes, _ = method.quantize(x)
    semantic, pixels = method.codebooks[0].table.split(3, -1)
    d_sem = (x[..., None, :3] - semantic).square().sum(-1)
    d_pix = (x[..., None, 3:] - pixels).square().sum(-1)
    code = (d_sem + weight * d_pix).argmin(-1)
    assert torch.equal(codes[..., 0], code)
    # The nearest semantic entry at 0, and that of pixels if the weight is large.
    if weight in (0, 1e6):
        assert torch.equal(code, (d_pix if weight else d_sem).argmin(-1))
    # Both codebooks are looked up with the same index.
    assert torch.equal(features, torch.cat([semantic[code], pixels[code]], -1))


def test_levels_quantize_the_rest():
    method = build(levels=3)
    x = torch.randn(1, 20, 6)
    codes = method.quantize(x).codes
    rest, total = x, torch.zeros_like(x)
    for level, book in enumerate(method.codebooks):
        code = (rest[..., None, :] - book.table).square().sum(-1).argmin(-1)
        assert torch.equal(codes[..., level], code)
        rest, total = rest - book.table[code], total + book.table[code]
        torch.testing.assert_close(method.lookup(codes[..., : level + 1]), total)
    torch.testing.assert_close(total + rest, x)


def test_losses():
    method = build(levels=2).train()
    x = torch.randn(1, 20, 6)
    _, codes, losses = method.quantize(x)
    rest = x - method.codebooks[0].table[codes[..., 0]]
    errors = rest.square().mean() + (rest - method.codebooks[1].table[codes[..., 1]]).square().mean()
    torch.testing.assert_close(losses, {"codebook": errors, "commitment": 0.25 * errors})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": -0.1}, "weight must be at least 0 and finite"),
        ({"weight": float("inf")}, "weight must be at least 0 and finite"),
        ({"levels": 0}, "levels must be at least 1"),
        ({"dim": 1}, "dim must be at least 2"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DualVq(**arguments)
