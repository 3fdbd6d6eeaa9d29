"""The causal U-Net: one step, causality, chunks, odd sizes."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers.blocks.flow import seeded_noise
from fewtokens.tokenizers.decoders.causal_unet import CausalUnet


def build(**options) -> CausalUnet:
    torch.manual_seed(0)
    decoder = CausalUnet(6, **{"width": 4, "context": 4, **options}).eval()
    with torch.no_grad():
        decoder.unet.output.weight.normal_(std=0.1)
    return decoder


def cells(T: int = 3, H: int = 1, W: int = 2) -> Tokens:
    return Tokens.from_cells(torch.randn(2, T, H, W, 6, generator=torch.Generator().manual_seed(0)))


@torch.no_grad()
def test_untrained_network_predicts_zero():
    frames = CausalUnet(6, width=4, context=4)(cells())
    assert torch.equal(frames, torch.zeros(2, 9, 3, 8, 16))


@torch.no_grad()
def test_one_step_is_the_network_at_the_highest_level():
    decoder, tokens = build(), cells()
    noise = 0.8 * seeded_noise((9, 3, 8, 16), 0).expand(2, -1, -1, -1, -1)
    expected = decoder.denoise(tokens, noise, torch.full((2,), 8191 / 8192))
    torch.testing.assert_close(decoder(tokens), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(decoder(tokens, seed=1), expected)


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 2])
def test_chunks_equal_the_whole(steps):
    decoder, tokens = build(steps=steps).double(), cells(4)
    tokens = tokens.replace(features=tokens.features.double())
    state, parts = None, []
    for rows in (slice(0, 1), slice(1, 2), slice(2, 4)):
        frames, state = decoder.step(Tokens.from_cells(tokens.unmerge()[:, rows]), state)
        parts.append(frames)
    assert [part.shape[1] for part in parts] == [1, 4, 8]
    torch.testing.assert_close(torch.cat(parts, 1), decoder(tokens), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_later_latents_do_not_change_earlier_frames():
    decoder, tokens = build(steps=2), cells(3)
    changed = tokens.features.clone()
    changed[:, 4:] += 1
    before, after = decoder(tokens), decoder(tokens.replace(features=changed))
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5], after[:, 5])


@torch.no_grad()
def test_frames_of_a_batch_are_independent():
    decoder, tokens = build(), cells()
    frames = decoder(tokens)
    torch.testing.assert_close(decoder(tokens[1:]), frames[1:], rtol=1e-4, atol=1e-4)
    assert torch.equal(decoder(tokens.replace(features=tokens.features.flip(0))), frames.flip(0))


@pytest.mark.parametrize(("options", "message"), [({"width": 0}, "width must be"), ({"noise": -1.0}, "noise must be")])
def test_invalid_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
