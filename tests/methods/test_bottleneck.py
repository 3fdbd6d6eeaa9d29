"""Bottleneck: the layers, standardized tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fewtokens.methods.learned.bottleneck import Bottleneck
from tests.helpers.clips import clip


def test_layers():
    assert isinstance(Bottleneck(dim=24).project, nn.Identity)
    tokens = clip(C=24)
    linear = Bottleneck(6, dim=24)
    expected = tokens.features @ linear.project.weight.T + linear.project.bias
    torch.testing.assert_close(linear(tokens).features, expected)
    deep = Bottleneck(6, dim=24, hidden=8)
    first, _, last = deep.project
    expected = last(nn.functional.gelu(first(tokens.features)))
    torch.testing.assert_close(deep(tokens).features, expected)
    assert (deep.out_dim, deep(tokens).C) == (6, 6)


def test_standardized_tokens():
    tokens = clip(C=24, lengths=[4, 2])
    out = Bottleneck(dim=24, standardize=True)(tokens)
    x = tokens.features.numpy()
    for token, original, real in zip(out.features[1].numpy(), x[1], tokens.mask[1].tolist(), strict=True):
        expected = (original - original.mean()) / original.std(ddof=1) if real else np.zeros(24)
        np.testing.assert_allclose(token, expected, atol=1e-5)
    assert not out.features[~tokens.mask].any()
    constant = tokens.replace(features=torch.ones_like(tokens.features))
    assert bool(Bottleneck(dim=24, standardize=True)(constant).features.isfinite().all())


def test_the_gradient_reaches_the_input():
    tokens = clip(C=24)
    features = tokens.features.clone().requires_grad_()
    Bottleneck(4, dim=24, standardize=True)(tokens.replace(features=features)).features.square().mean().backward()
    assert features.grad is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [({"channels": 0}, "must be at least 1"), ({"hidden": 0}, "must be at least 1"),
     ({"channels": 1, "standardize": True}, "at least 2 channels")],
)  # fmt: skip
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        Bottleneck(dim=24, **options)
