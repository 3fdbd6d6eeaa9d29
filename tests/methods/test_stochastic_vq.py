"""Stochastic VQ: the sampled and the nearest entry, the losses of LARP."""

from __future__ import annotations

import math

import pytest
import torch

from fewtokens.methods.quantizers.stochastic_vq import StochasticVq


def three_entries(**arguments) -> StochasticVq:
    """Entries at cosines of 1, 0.98 and 0.95 to the first axis, of different lengths."""
    method = StochasticVq(3, dim=2, code_dim=2, **arguments)
    table = torch.tensor([[math.cos(a), math.sin(a)] for a in (0.0, math.acos(0.98), -math.acos(0.95))])
    method.table.data = table * torch.tensor([[5.0], [1.0], [0.2]])
    return method


def test_training_samples_in_proportion_to_the_softmax_of_cosines():
    x = torch.tensor([2.0, 0.0]).expand(1, 6_000, 2)
    weights = torch.tensor([math.exp(cosine / 0.03) for cosine in (1.0, 0.98, 0.95)])
    for method in (three_entries().train(), three_entries(deterministic=False).eval()):
        torch.manual_seed(0)
        codes = method.quantize(x).codes
        frequencies = codes.flatten().bincount(minlength=3) / 6_000
        torch.testing.assert_close(frequencies, weights / weights.sum(), atol=0.02, rtol=0)
    assert not bool(three_entries().eval().quantize(x).codes.any())


def test_the_features_are_entries_of_length_1():
    method = three_entries().eval()
    features, codes, losses = method.quantize(torch.tensor([[[0.9, 0.5], [3.0, -1.0]]]))
    assert codes[0, :, 0].tolist() == [1, 2]
    torch.testing.assert_close(features[0], torch.tensor([[0.98, 0.19900], [0.95, -0.31225]]), atol=1e-3, rtol=0)
    assert losses == {}


def test_losses():
    """0.1 * (|sg(z) - e|^2 + 0.25 |z - sg(e)|^2), of vectors of length 1."""
    torch.manual_seed(0)
    method = StochasticVq(8, dim=4, code_dim=4).train()
    x = torch.randn(1, 20, 4)
    _, codes, losses = method.quantize(x)
    z, e = (value / value.norm(dim=-1, keepdim=True) for value in (x, method.table[codes[..., 0]]))
    error = (z - e).square().mean()
    torch.testing.assert_close(losses, {"codebook": 0.1 * error, "commitment": 0.025 * error})


def test_bad_arguments():
    with pytest.raises(ValueError, match="temperature must be above 0"):
        StochasticVq(temperature=0.0)
