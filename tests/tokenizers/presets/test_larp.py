"""LARP: published sizes, a prior that sees only earlier codes, whose gradient reaches the encoder."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fewtokens.tokenizers.presets.larp import PRESET, Larp, Prior
from tests.tokenizers.presets.tiny import build, clips, largest_gradient, published


def test_published_size():
    parameters, layout = published("larp")
    assert parameters == pytest.approx(173, rel=0.01)
    assert (layout.tokens, layout.bits) == (1024, 1024 * 13)


@torch.no_grad()
def test_the_prior_predicts_from_earlier_codes_only():
    torch.manual_seed(0)
    prior = Prior(16, 12, 6, 2)
    entries = torch.randn(1, 6, 16)
    changed = entries.clone()
    changed[:, 3] += 1
    same = (prior(entries) == prior(changed)).all(2)[0].tolist()
    assert same == [True] * 3 + [False] * 2  # of entries 1 to 5


def test_the_gradient_of_the_prior_reaches_the_encoder():
    tokenizer = build("larp").train()
    losses = tokenizer(clips("larp")).losses
    assert set(losses) == {"prior", "stochastic_vq.codebook", "stochastic_vq.commitment"}
    losses["prior"].backward()
    assert largest_gradient(tokenizer.encoder) > 0
    assert largest_gradient(tokenizer.prior) > 0
    assert largest_gradient(tokenizer.decoder) == 0
    assert int(tokenizer.steps) == 1
    tokenizer.eval()(clips("larp"))
    assert int(tokenizer.steps) == 1


def test_codes_become_predictable():
    """The cross-entropy of the prior falls below the entropy of independent codes, while the error falls too."""
    torch.manual_seed(0)
    tokenizer = Larp.from_spec(PRESET.tiny.replace("stochastic_vq(256", "stochastic_vq(16")).train()
    pictures = F.interpolate(torch.rand(4, 3, 2, 2), (32, 32), mode="bilinear")
    frames = pictures[:, None].expand(-1, 4, -1, -1, -1)
    optimizer, errors = torch.optim.Adam(tokenizer.parameters(), 2e-3), []
    for _ in range(40):
        step = tokenizer(frames)
        error = (step.frames - (2 * frames - 1)).abs().mean()
        optimizer.zero_grad()
        (10 * error + sum(step.losses.values())).backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.9 * errors[0]
    result = tokenizer.eval()(frames)
    share = result.tokens.codes.unique(return_counts=True)[1] / result.tokens.codes.numel()
    entropy = -(share * share.log()).sum()
    assert float(entropy) > 0.5
    assert float(result.losses["prior"].detach()) / 0.06 < float(entropy)
