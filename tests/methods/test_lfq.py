"""LFQ: signs, the order of bits, entropies against all codes."""

from __future__ import annotations

import pytest
import torch

from fewtokens.methods.quantizers.lfq import Lfq


def entropies(z: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean entropy of p(c|z) = softmax_c(2 scale z c) and that of its mean, over all 2^K codes of +-1."""
    bits = z.shape[1]
    codes = (torch.arange(2**bits)[:, None] >> torch.arange(bits)) & 1
    p = (2 * scale * z.double() @ (codes * 2.0 - 1).double().T).softmax(1)
    mean = p.mean(0)
    return -torch.xlogy(p, p).sum(1).mean(), -torch.xlogy(mean, mean).sum()


def test_the_first_bit_counts_least():
    features, codes, _ = Lfq(3, dim=3).quantize(torch.tensor([[[0.2, -1.0, 3.0], [-1.0, 0.1, -0.1]]]))
    assert codes[0, :, 0].tolist() == [0b101, 0b010]
    assert features.tolist() == [[[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0]]]


def test_losses_are_those_over_all_codes():
    torch.manual_seed(0)
    z = torch.randn(1, 40, 8) * 0.01
    method = Lfq(8, dim=8, group=8, entropy=0.3, diversity=0.7, commitment=0.5).train()
    losses = method.quantize(z).losses
    sample, batch = entropies(z[0], 100)
    torch.testing.assert_close(losses["entropy"].double(), 0.3 * (sample - 0.7 * batch), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses["commitment"], 0.5 * (z - z.sign()).square().mean())


def test_groups_bound_the_entropy_of_the_mean_code():
    torch.manual_seed(0)
    z = torch.randn(1, 40, 8) * 0.01
    exact, bound = (Lfq(8, dim=8, group=g, commitment=0).train().quantize(z).losses["entropy"] for g in (8, 4))
    # A larger entropy of the mean code, and so a smaller loss.
    assert bound < exact


def test_eval_has_no_losses():
    assert Lfq(4, dim=8).eval().quantize(torch.randn(1, 3, 8)).losses == {}


def test_any_number_of_bits():
    torch.manual_seed(0)
    method = Lfq(62, dim=62)
    z = torch.randn(1, 20, 62)
    features, codes, _ = method.quantize(z)
    assert torch.equal(features, z.sign())
    assert codes.min() >= 0
    assert method.bits == 62


@pytest.mark.parametrize(("arguments", "message"), [({"num_bits": 63}, "1..62"), ({"group": 17}, "1..16")])
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Lfq(**arguments)
