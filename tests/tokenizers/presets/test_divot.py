"""Divot: published counts, the frozen image encoder, which frames are read, the start of the temporal layers."""

from __future__ import annotations

import pytest
import torch

from fewtokens.tokenizers import create_tokenizer, get_preset
from fewtokens.video import synthetic


def clips() -> torch.Tensor:
    return torch.stack([synthetic(kind, frames=4, size=(32, 32)).frames for kind in ("pan", "shapes")])


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    return create_tokenizer("divot", tiny=True).eval()


def test_published_size():
    pytest.importorskip("diffusers")
    with torch.device("meta"):
        published = create_tokenizer("divot")
    layout = published.layout(*get_preset("divot").clip)
    # 5 frames of 5 x 5 cells before the resampler.
    assert (layout.grid, layout.tokens, layout.bits) == ((5, 5, 5), 64, 64 * 256 * 32)
    # The vision tower of CLIP ViT-H/14 has 630.8 M without its projection.
    assert sum(p.numel() for p in published.encoder.images.parameters()) / 1e6 == pytest.approx(630.8, rel=0.002)


@torch.no_grad()
def test_only_the_middle_frames_of_cells_are_read(tokenizer):
    frames = clips().float() / 127.5 - 1
    x = frames.transpose(1, 2)
    changed = x.clone()
    changed[:, :, ::2] = 0  # cells of 2 frames, whose frame 1 is read
    assert torch.equal(tokenizer.encoder.latents(changed), tokenizer.encoder.latents(x))
    changed[:, :, 1] = 0
    assert not torch.equal(tokenizer.encoder.latents(changed), tokenizer.encoder.latents(x))


def test_temporal_layers_add_nothing_at_the_start(tokenizer):
    encoder = tokenizer.encoder
    x = clips().transpose(1, 2).float() / 127.5 - 1
    before = encoder.latents(x)
    with torch.no_grad():
        encoder.narrow.weight.normal_()
    assert torch.equal(encoder.latents(x), before)
    encoder.latents(x).square().mean().backward()
    assert float(encoder.widen.weight.grad.abs().max()) > 0


def test_the_image_encoder_is_frozen(tokenizer):
    tokenizer.train()
    assert not tokenizer.encoder.images.model.training
    assert not any(p.requires_grad for p in tokenizer.encoder.images.parameters())
    assert list(tokenizer(clips()).losses) == ["diffusion"]


def test_tokens_of_a_longer_video(tokenizer):
    video = synthetic("pan", frames=9, size=(32, 32)).frames
    tokens = tokenizer.encode(video)
    assert tokens.features.shape == (3, 8, 16)
    assert float(tokenizer.bits(tokens).sum()) == 3 * 8 * 16 * 32
    assert tokenizer.decode(tokens).shape == (1, 9, 3, 32, 32)
