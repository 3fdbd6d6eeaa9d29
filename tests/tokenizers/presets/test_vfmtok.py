"""VFMTok: token count at any size, frozen teacher, the two passes of its decoder, causal mask."""

from __future__ import annotations

import math

import pytest
import torch

from fewtokens.tokenizers import create_tokenizer, get_preset
from fewtokens.video import synthetic


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return create_tokenizer("vfmtok", tiny=True)


def frames(T: int = 2, height: int = 32, width: int = 32) -> torch.Tensor:
    return synthetic("shapes", frames=T, size=(height, width)).frames


def test_published_tokens_and_bits():
    with torch.device("meta"):
        published = create_tokenizer("vfmtok")
    layout = published.layout(*get_preset("vfmtok").clip)
    assert (layout.grid, layout.tokens, layout.bits) == ((1, 24, 24), 256, 256 * 14)
    # The last patches of 16 pixels end at the edge: 336 = 21 * 16.
    assert published.decoder.patch == 16
    frozen = sum(p.numel() for p in published.encoder.parameters())
    assert frozen / 1e6 == pytest.approx(304.4, rel=0.01)


@pytest.mark.parametrize("size", [(1, 32, 32), (2, 24, 48), (1, 41, 30)])
def test_the_number_of_tokens_does_not_depend_on_the_size(tokenizer, size):
    tokenizer.eval()
    tokens = tokenizer.encode(frames(*size))
    assert tokens.count.tolist() == [16 * size[0]]
    assert float(tokenizer.bits(tokens)) == 16 * size[0] * math.log2(256)
    assert tokenizer.decode(tokens).shape == (1, size[0], 3, *size[1:])


def test_both_passes_train_the_same_blocks_and_their_own_mask_token(tokenizer):
    tokenizer.train()
    decoder = tokenizer.decoder
    step = tokenizer(frames()[None])
    tokens = step.tokens.replace(features=step.tokens.features.detach())

    def touched(output: torch.Tensor) -> dict[str, bool]:
        parameters = dict(decoder.named_parameters())
        found = torch.autograd.grad(output.square().mean(), list(parameters.values()), allow_unused=True)
        return {name: g is not None and bool(g.any()) for name, g in zip(parameters, found, strict=True)}

    pixels, features = touched(decoder(tokens)), touched(decoder.predict(tokens))
    assert all(pixels[name] and features[name] for name in pixels if name.startswith(("stack", "embed")))
    assert pixels["mask_token"] and not pixels["feature_mask_token"]
    assert features["feature_mask_token"] and not features["mask_token"]


def test_a_patch_depends_on_tokens_and_earlier_patches_only(tokenizer):
    decoder = tokenizer.decoder.eval()
    tokens = tokenizer.eval().encode(frames(1))
    before = decoder._run(tokens, decoder.mask_token, 4, 4)
    # Registers come last, so nothing depends on them.
    with torch.no_grad():
        decoder.register_tokens.add_(1)
    assert torch.equal(before, decoder._run(tokens, decoder.mask_token, 4, 4))
    fewer = decoder._run(tokens, decoder.mask_token, 2, 4)
    torch.testing.assert_close(fewer, before[:, :8])


def test_the_feature_loss_is_that_of_the_frozen_features(tokenizer):
    tokenizer.train()
    clip = frames()[None].float() / 255
    encoder = tokenizer.encoder
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in tokenizer.parameters() if p.requires_grad], 3e-3)
    losses = []
    for _ in range(25):
        step = tokenizer(clip)
        losses.append(float(step.losses["features"].detach()))
        optimizer.zero_grad()
        (sum(step.losses.values()) + (step.frames - (2 * clip - 1)).square().mean()).backward()
        optimizer.step()
    target = encoder.read((2 * clip - 1).transpose(1, 2), (-1,))[0].movedim(1, -1)
    tokenizer.eval()
    tokens = tokenizer.pipeline(clip)
    predicted = tokenizer.decoder.predict(tokens)
    expected = 1 - (predicted * target).sum(-1) / (predicted.norm(dim=-1) * target.norm(dim=-1))
    losses_now = tokenizer.extra_losses(2 * clip - 1, tokens, None)
    torch.testing.assert_close(losses_now["features"], expected.mean())
    assert losses[-1] < losses[0] / 2
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
