"""Video-LaVIT: 135 tokens of motion, two codebooks, a pan that is decoded as one vector, deterministic codes."""

from __future__ import annotations

import math

import pytest
import torch

from fewtokens import load_encoder
from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers import create_tokenizer, get_preset
from fewtokens.tokenizers.parts import to_signed
from fewtokens.video import synthetic
from tests.tokenizers.blocks.test_motion_vectors import pan


def build():
    return create_tokenizer("video_lavit", tiny=True, seed=0)


def test_published_tokens_and_bits():
    with torch.device("meta"):
        published = create_tokenizer("video_lavit")
    layout = published.layout(*get_preset("video_lavit").clip)
    assert layout.tokens - 20 * 36 == 135
    assert layout.bits == 20 * 36 * 14 + 135 * 10
    assert len(published.encoder.motion.stages) * len(published.encoder.motion.stages[0].blocks) == 12


def test_codes_of_two_streams():
    tokenizer = build().eval()
    clip = synthetic("pan", frames=9, size=(64, 128)).frames
    tokens = tokenizer.encode(clip)
    keyframe = torch.arange(tokens.N) < 32
    assert torch.equal(tokens.codes[0, :, 0] >= 0, keyframe)
    assert torch.equal(tokens.codes[0, :, 1] >= 0, ~keyframe)
    assert float(tokenizer.bits(tokens)[0]) == 32 * 8 + 2 * math.log2(64)
    assert torch.equal(tokens.codes, tokenizer.encode(clip).codes)
    # The keyframe does not depend on later frames, nor motion on the colors of decoded frames.
    assert torch.equal(tokenizer.encode(clip[:1]).codes[0, :, 0], tokens.codes[0, :32, 0])
    exchanged = torch.where(keyframe[:, None], tokens.codes, tokenizer.encode(clip.flip(0)).codes)
    decoded = tokenizer.decode(tokens.replace(codes=exchanged))
    assert torch.equal(decoded[:, 0], tokenizer.decode(tokens)[:, 0])


@pytest.mark.parametrize("count", [1, 9, 17])
def test_the_time_of_a_token_is_that_of_its_first_frame(count, tmp_path):
    tokenizer, clip = build(), synthetic("pan", frames=count, size=(64, 64))
    # Windows of 9 frames: the slots of the keyframe, and one row for the 8 frames after it.
    window = [0.0] * 16 + ([1.0] if count > 1 else [])
    frames = [first + index for first in range(0, count, 9) for index in window]
    expected = [min(index, count - 1) / 4 for index in frames]
    if count <= 9:  # windows have no times
        assert tokenizer.encode(clip.frames, torch.arange(count) / 4).grid.times.tolist() == expected
    encoder = load_encoder(tokenizer.save_pretrained(tmp_path / "t"), device="cpu")
    assert encoder.grid(count, 64, 64, torch.arange(count) / 4).times.tolist() == expected
    assert len(window) == tokenizer.encode(clip).grid.T


def test_a_pan_is_decoded_as_one_vector():
    """After a short training on two pans, decoded vectors deviate from the median vector by less than 5 %."""
    tokenizer = build().train()
    frames = torch.cat([pan(right, down, frames=9) for right, down in ((4, 0), (-3, 3))])
    # Blocks at the edge, where new content comes in, have no source.
    target = tokenizer.encoder.fields(to_signed(frames)).flatten(3).median(3).values.median(1).values
    fields = target[:, None, :, None, None].expand(-1, 8, -1, 4, 4)
    motion, quantizer = tokenizer.encoder.motion, tokenizer.quantizer
    parameters = [*motion.parameters(), *tokenizer.decoder.motion.parameters(), *quantizer.parameters()]
    optimizer = torch.optim.Adam(parameters, 6e-3)
    for step in range(80):
        optimizer.param_groups[0]["lr"] = 6e-3 * min(1.0, 2 * (1 - step / 80))
        image = torch.zeros(2, 16, 16, 1, 1)
        latents = torch.cat([image, motion(fields).movedim(-1, 1)], 2)
        tokens = quantizer(Tokens.from_cells(latents.movedim(1, -1)))
        decoded = tokenizer.decoder.fields(tokens.unmerge().movedim(-1, 1))
        loss = (decoded - fields).square().mean() + sum(v for k, v in tokens.aux.items() if k.endswith("1"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    error = (decoded - fields).square().sum(2).sqrt().amax((1, 2, 3))
    assert bool((error < 0.05 * target.square().sum(1).sqrt()).all())


def test_motion_is_trained_by_vectors_only():
    tokenizer = build().train()
    frames = synthetic("pan", frames=9, size=(64, 64)).frames[None]
    step = tokenizer(frames)
    (step.frames - to_signed(frames)).square().mean().backward(retain_graph=True)
    assert all(p.grad is None for p in tokenizer.decoder.motion.parameters())
    assert any(bool(p.grad.abs().max() > 0) for p in tokenizer.encoder.image.parameters())
    step.losses["motion"].backward()
    assert all(bool(p.grad.isfinite().all()) for p in tokenizer.decoder.motion.parameters())
