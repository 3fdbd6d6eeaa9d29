"""Patch-wise diffusion: independent tubelets, seeds, chunks, and a trained decoder that depends on its tokens."""

from __future__ import annotations

import math

import pytest
import torch

from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers.decoders.patch_flow import PatchFlow
from fewtokens.video import synthetic


def build(**options) -> PatchFlow:
    """A small decoder with random weights in the layers that are zero at the start."""
    torch.manual_seed(0)
    decoder = PatchFlow(6, **{"stride": (2, 4, 4), "width": 32, "depth": 2, "blocks": 1, **options}).eval()
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if "modulation" in name or "output" in name:
                parameter.normal_(std=0.3)
    return decoder


def cells(seed: int = 0) -> Tokens:
    return Tokens.from_cells(torch.randn(2, 3, 2, 3, 6, generator=torch.Generator().manual_seed(seed)))


@torch.no_grad()
def test_untrained_network_predicts_zero():
    decoder = PatchFlow(6, stride=(2, 4, 4), width=32, depth=2, blocks=1, target="x")
    assert torch.equal(decoder(cells(), steps=3), torch.zeros(2, 6, 3, 8, 12))


@torch.no_grad()
@pytest.mark.parametrize("blocks", [0, 1])
def test_tubelets_are_independent_without_blocks(blocks):
    decoder, tokens = build(blocks=blocks), cells()
    changed = tokens.features.clone()
    changed[:, 7] += 1  # frame 1, row 0, column 1
    before, after = decoder(tokens, steps=2), decoder(tokens.replace(features=changed), steps=2)
    same = (before == after).unflatten(1, (3, 2)).unflatten(4, (2, 4)).unflatten(6, (3, 4)).all(7).all(5).all(3)
    same = same.all(2).all(0)
    expected = torch.ones(3, 2, 3, dtype=torch.bool)
    expected[(1, 0, 1) if blocks == 0 else 1] = False
    assert torch.equal(same, expected)


@torch.no_grad()
def test_frames_depend_on_tokens_and_seed_only():
    decoder, tokens = build(steps=2), cells()
    frames = decoder(tokens)
    assert torch.equal(frames, decoder(tokens))
    assert torch.equal(frames.flip(0), decoder(tokens.replace(features=tokens.features.flip(0))))
    torch.testing.assert_close(frames[1:], decoder(tokens[1:]), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(frames, decoder(tokens, seed=1))


@torch.no_grad()
def test_chunks_equal_the_whole():
    decoder, tokens = build(steps=2), cells()
    state, parts = None, []
    for rows in (slice(0, 1), slice(1, 3)):
        frames, state = decoder.step(Tokens.from_cells(tokens.unmerge()[:, rows]), state)
        parts.append(frames)
    torch.testing.assert_close(torch.cat(parts, 1), decoder(tokens), rtol=1e-5, atol=1e-5)


def psnr(decoded: torch.Tensor, frames: torch.Tensor) -> float:
    return -10 * math.log10(float((decoded.clamp(-1, 1) - frames).square().mean()) / 4)


def test_a_trained_decoder_listens_to_its_tokens():
    torch.manual_seed(0)
    clips = torch.cat([synthetic(name, frames=2, size=(16, 16)).frames[None] for name in ("pan", "shapes")])
    frames = clips.float() / 127.5 - 1
    decoder = PatchFlow(8, stride=(1, 8, 8), width=64, depth=2, blocks=0, target="x")
    codes = torch.nn.Parameter(torch.randn(2, 2, 2, 2, 8))
    optimizer = torch.optim.AdamW([*decoder.parameters(), codes], 3e-3)
    for _ in range(150):
        loss = sum(decoder.losses(Tokens.from_cells(codes), frames).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        decoder.eval()
        tokens = Tokens.from_cells(codes.detach())
        decoded = decoder(tokens)
        mean = frames.mean((1, 3, 4), keepdim=True).expand_as(frames)
        assert psnr(decoded, frames) > psnr(mean, frames) + 8
        exchanged = decoder(tokens.replace(features=tokens.features.flip(0)))
        assert torch.equal(exchanged, decoded.flip(0))
        noises = (decoder(tokens, seed=1) - decoded).square().mean()
        contents = (exchanged - decoded).square().mean()
        assert float(noises) < 0.1 * float(contents)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": (1, 8)}, "three counts"),
        ({"depth": 0}, "at least 1"),
        ({"width": 96}, "multiple of 64"),
        ({"target": "noise"}, "target must be"),
    ],
)
def test_invalid_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        PatchFlow(6, **options)
