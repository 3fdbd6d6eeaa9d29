"""Residual VQ: each level quantizes the rest, a prefix of the codes is a coarser token."""

from __future__ import annotations

import pytest
import torch

from fewtokens.methods.quantizers.residual_vq import ResidualVq


@pytest.fixture(scope="module")
def trained() -> tuple[ResidualVq, torch.Tensor]:
    torch.manual_seed(0)
    method = ResidualVq(32, dim=6, levels=4, code_dim=6, decay=0.9).train()
    centers = torch.randn(20, 6) * 3
    for step in range(60):
        torch.manual_seed(step)
        method.quantize((centers[torch.randint(20, (400,))] + 0.5 * torch.randn(400, 6))[None])
    x = centers[torch.randint(20, (300,))] + 0.5 * torch.randn(300, 6)
    return method.eval(), x[None]


def test_each_level_quantizes_what_the_earlier_ones_left(trained):
    method, x = trained
    codes = method.quantize(x).codes
    rest = x
    for level, layer in enumerate(method.codebooks.layers):
        nearest = (rest[:, :, None] - layer.codebook).square().sum(-1).argmin(-1)
        assert torch.equal(codes[..., level], nearest)
        rest = rest - layer.codebook[nearest]
    torch.testing.assert_close(method.lookup(codes), x - rest, atol=1e-5, rtol=1e-5)


def test_a_longer_prefix_is_nearer(trained):
    method, x = trained
    codes = method.quantize(x).codes
    errors = [(method.lookup(codes[..., :level]) - x).square().mean() for level in (1, 2, 3, 4)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 4 * errors[-1]


def test_minus_one_stands_for_no_detail(trained):
    method, x = trained
    codes = method.quantize(x).codes
    dropped = codes.clone()
    dropped[..., 2:] = -1
    assert torch.equal(method.lookup(dropped), method.lookup(codes[..., :2]))


def test_bits():
    assert ResidualVq(1024, levels=3).bits == 30


def test_bad_arguments():
    with pytest.raises(ValueError, match="levels must be at least 1"):
        ResidualVq(levels=0)
