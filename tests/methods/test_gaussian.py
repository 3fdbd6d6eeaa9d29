"""Gaussian: samples, the KL divergence, the layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewtokens.core.tokens import Tokens
from fewtokens.methods.learned.gaussian import Gaussian
from tests.helpers.clips import clip


def constant(values: list[float], cells: int) -> Tokens:
    return Tokens.from_cells(torch.tensor(values).expand(1, 1, 1, cells, -1))


def test_tokens_are_samples_in_training_and_means_otherwise():
    method = Gaussian(2, dim=4)
    tokens = constant([1.0, -2.0, 0.0, 2.0], 40_000)
    assert isinstance(method.project, nn.Identity)
    assert torch.equal(method.eval()(tokens).features, tokens.features[..., :2])
    assert torch.equal(Gaussian(2, dim=4).eval()(tokens).features, tokens.features[..., :2])
    for sampler in (method.train(), Gaussian(2, dim=4, sample=True).eval()):
        torch.manual_seed(0)
        samples = sampler(tokens).features[0]
        torch.testing.assert_close(samples.mean(0), torch.tensor([1.0, -2.0]), atol=0.05, rtol=0)
        # A log-variance of 2 is a standard deviation of e.
        torch.testing.assert_close(samples.std(0), torch.tensor([1.0, 2.71828]), atol=0.05, rtol=0)


def test_the_divergence_is_that_of_torch():
    tokens = clip(C=8, lengths=[4, 2])
    losses = Gaussian(4, dim=8, kl=0.5).train()(tokens).aux
    mean, log_variance = tokens.features[tokens.mask].chunk(2, -1)
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    divergence = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(-1).mean()
    torch.testing.assert_close(losses, {"gaussian.kl": 0.5 * divergence})
    assert Gaussian(4, dim=8).eval()(tokens).aux == {}


def test_the_log_variance_is_limited():
    """As in diffusers: -30..20."""
    method = Gaussian(1, dim=2, kl=1.0).train()
    for value, limit in ((-50.0, -30.0), (50.0, 20.0)):
        loss = method(constant([0.0, value], 3)).aux["gaussian.kl"]
        expected = (torch.tensor(limit).exp() - 1 - limit) / 2
        torch.testing.assert_close(loss, expected)


def test_the_layer_and_the_number_of_channels():
    assert Gaussian(16, dim=24).eval()(clip(C=24)).C == 16
    assert Gaussian(16, dim=24).project.out_features == 32
    assert Gaussian(dim=24).eval()(clip(C=24)).C == 24


def test_bad_arguments():
    with pytest.raises(ValueError, match="channels must be at least 1"):
        Gaussian(0)
    with pytest.raises(ValueError, match="built for 24 channels"):
        Gaussian(4, dim=24)(clip(C=12))
