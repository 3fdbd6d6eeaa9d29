"""Geometry VQ: a codebook, and rounded scalars."""

from __future__ import annotations

import pytest
import torch

from fewtokens.methods.quantizers.geometry_vq import GeometryVq


def build(**options) -> GeometryVq:
    torch.manual_seed(0)
    return GeometryVq(16, dim=7, scalars=3, code_dim=4, **options).eval()


def test_scalars_are_rounded_and_the_rest_is_vq():
    method = build(levels=5)
    assert method.codebook_sizes == (16, 5, 5, 5)
    x = torch.randn(2, 6, 7)
    x[0, 0, 4:] = torch.tensor([0.3, -2.0, 9.0])
    features, codes, _ = method.quantize(x)
    assert codes[0, 0, 1:].tolist() == [1, 0, 4]
    assert features[0, 0, 4:].tolist() == [0.25, 0, 1]
    expected, own, _ = method.vq.quantize(x[..., :4])
    assert torch.equal(features[..., :4], expected)
    assert torch.equal(codes[..., :1], own)
    assert torch.equal(method.lookup(codes), features)


def test_the_gradient_of_scalars_passes_through():
    x = torch.rand(1, 4, 7, requires_grad=True)
    build().train().quantize(x).features[..., 4:].sum().backward()
    assert bool((x.grad[..., 4:] == 1).all())
    with pytest.raises(ValueError, match="scalars must be"):
        GeometryVq(16, dim=5)
