"""BSQ: vectors of length 1, entropies against all codes."""

from __future__ import annotations

import pytest
import torch

from fewtokens.methods.quantizers.bsq import Bsq


@pytest.mark.parametrize("bits", [18, 36])
def test_vectors_have_length_1(bits):
    torch.manual_seed(0)
    features, codes, _ = Bsq(bits, dim=bits).quantize(torch.randn(2, 30, bits))
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(2, 30))
    assert int(codes.max()) < 2**bits


@pytest.mark.parametrize("bits", [4, 8, 10])
def test_the_loss_is_that_over_all_codes(bits):
    # p(c|z) = softmax_c(2 u c) with u of length 1 and all codes c of length 1.
    torch.manual_seed(0)
    z = torch.randn(1, 25, bits)
    u = torch.nn.functional.normalize(z[0].double(), dim=1)
    codes = (((torch.arange(2**bits)[:, None] >> torch.arange(bits)) & 1) * 2.0 - 1).double() * bits**-0.5
    p = (2 * u @ codes.T).softmax(1)
    mean = p.mean(0)
    expected = 0.2 * (-torch.xlogy(p, p).sum(1).mean() + 0.9 * torch.xlogy(mean, mean).sum())
    loss = Bsq(bits, dim=bits, entropy=0.2, diversity=0.9, group=bits).train().quantize(z).losses["entropy"]
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_distance_to_a_code_is_bounded():
    torch.manual_seed(0)
    z = torch.randn(1, 500, 18) * 100
    features = Bsq(18, dim=18).quantize(z).features
    # Farthest from its code is a vector along one axis.
    far = (2 - 2 * 18**-0.5) ** 0.5
    assert (features - torch.nn.functional.normalize(z, dim=-1)).norm(dim=-1).max() <= far


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"num_bits must be in 1\.\.62"):
        Bsq(0)
