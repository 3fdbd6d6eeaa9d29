"""ImageFolder: published codes, independent branches, dropped scales, the contrastive loss on one branch."""

from __future__ import annotations

import pytest
import torch

from fewtokens.tokenizers import get_preset
from tests.tokenizers.presets.tiny import build, clips, largest_gradient, published


def test_published_size():
    _, layout = published("imagefolder")
    assert layout.tokens == 2 * 11 * 11
    assert layout.bits == 2 * 286 * 12


@torch.no_grad()
def test_branches_are_independent():
    quantizer, features = build("imagefolder").quantizer, torch.randn(2, 18, 64)
    changed = features.clone()
    changed[:, :9] *= -1
    before, after = quantizer.quantize(features), quantizer.quantize(changed)
    assert torch.equal(before.codes[:, 9:], after.codes[:, 9:])
    assert torch.equal(before.features[:, 9:], after.features[:, 9:])
    assert not torch.equal(before.codes[:, :9], after.codes[:, :9])


@torch.no_grad()
def test_codes_of_a_branch():
    tokenizer = build("imagefolder")
    tokens = tokenizer.encode(clips("imagefolder"))
    # Scales of 1, 1, 4 and 9 codes in each branch.
    assert (tokens.codes >= 0).unflatten(1, (2, 9)).sum(2).tolist() == [[[1, 1, 4, 9]] * 2] * 2
    assert float(tokenizer.bits(tokens)[0]) == 2 * 15 * 8


@torch.no_grad()
def test_fewer_scales_are_those_of_training():
    tokenizer = build("imagefolder")
    quantizer, tokens = tokenizer.quantizer, tokenizer.encode(clips("imagefolder"))
    kept = tokens.codes.clone()
    kept[..., 3:] = -1
    for branch in (quantizer.first, quantizer.second):
        branch._num_scales = lambda batch, device: torch.full((batch,), 3)
    dropped = tokenizer.encode(clips("imagefolder"))
    assert torch.equal(dropped.codes, kept)
    assert torch.equal(tokenizer.decode(dropped), tokenizer.decode(tokens.replace(codes=kept)))
    assert not torch.equal(tokenizer.decode(dropped), tokenizer.decode(tokens))


def test_the_contrastive_loss_trains_one_branch():
    tokenizer = build("imagefolder").train()
    features = []
    tokenizer.quantizer.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].features))
    step = tokenizer(clips("imagefolder", batch=3))
    (gradient,) = torch.autograd.grad(step.losses["contrastive"], features[0], retain_graph=True)
    assert float(gradient[:, :9].abs().max()) > 0
    assert float(gradient[:, 9:].abs().max()) == 0
    step.losses["contrastive"].backward()
    assert largest_gradient(tokenizer.encoder) > 0
    assert largest_gradient(tokenizer.teacher) == 0
    assert not tokenizer.teacher.network.training


def test_other_numbers_of_tokens_are_refused():
    spec = get_preset("imagefolder").tiny.replace("queries(18", "queries(16")
    tokenizer = type(build("imagefolder")).from_spec(spec)
    with pytest.raises(ValueError, match="two squares of tokens"):
        tokenizer.encode(clips("imagefolder"))
    with pytest.raises(ValueError, match="requires the encoder frozen"):
        type(build("imagefolder")).from_spec("tubelet(16) > tubelet")
