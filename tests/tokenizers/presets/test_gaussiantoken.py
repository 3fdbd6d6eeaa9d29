"""GaussianToken: published tokens, bits of the geometry, a set, and a round trip through 8-bit geometry."""

from __future__ import annotations

import torch

from fewtokens.tokenizers.files import read_encoded, write_encoded
from fewtokens.tokenizers.parts import to_signed
from fewtokens.video import synthetic
from tests.tokenizers.presets.tiny import build, clips, published


def test_published_tokens_and_bits():
    _, layout = published("gaussiantoken")
    assert (layout.tokens, layout.bits) == (256, 2560 + 256 * 5 * 8)


def test_gaussians_are_a_set():
    tokenizer = build("gaussiantoken")
    tokens = tokenizer.encode(clips("gaussiantoken"))
    order = torch.randperm(tokens.N, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(tokens.codes[:, order], tokens.codes)
    shuffled = tokenizer.decode(tokens.replace(codes=tokens.codes[:, order]))
    torch.testing.assert_close(shuffled, tokenizer.decode(tokens), atol=1e-5, rtol=1e-5)


def test_gaussians_begin_on_a_regular_grid_and_move():
    tokenizer = build("gaussiantoken")
    encoder = tokenizer.encoder
    for layer in encoder.stack:
        torch.nn.init.zeros_(layer.refine.weight)
        torch.nn.init.zeros_(layer.refine.bias)
    frames = to_signed(clips("gaussiantoken")).transpose(1, 2)
    x, y = encoder.latents(frames)[0, -5:-3, 0]
    assert torch.allclose(x, torch.tensor([0.125, 0.375, 0.625, 0.875]).expand(4, 4), atol=1e-6)
    assert torch.allclose(y, x.T, atol=1e-6)
    moved = build("gaussiantoken").encoder.latents(frames)[:, -5:].detach()
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1
    assert not torch.allclose(moved[0], moved[1])


def test_training_and_a_round_trip_through_saved_geometry(tmp_path):
    tokenizer = build("gaussiantoken").train()
    frames = torch.stack([synthetic(kind, frames=1, size=(32, 32)).frames for kind in ("pan", "shapes", "noise")])
    target = to_signed(frames)
    optimizer = torch.optim.Adam(tokenizer.parameters(), 3e-3)
    for _ in range(60):
        step = tokenizer(frames)
        loss = (step.frames - target).square().mean() + sum(step.losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokenizer.eval()
    tokens = tokenizer.encode(frames)
    path = write_encoded(tmp_path / "a", tokens, tokenizer, packed=True)
    saved = tokenizer.decode(read_encoded(path, tokenizer))
    assert torch.equal(saved, tokenizer.decode(tokens))
    with torch.no_grad():
        latents = tokenizer.encoder.latents(target.transpose(1, 2))
        features = tokenizer.quantizer.lookup(tokens.codes).transpose(1, 2).view_as(latents)
        exact = torch.cat([features[:, :-5], latents[:, -5:]], 1)
        decoded = tokenizer.decoder.pixels_of(exact).transpose(1, 2).add(1).div(2).clamp(0, 1)

    def psnr(x: torch.Tensor) -> float:
        return float(-10 * (x - frames / 255).square().mean().log10())

    assert not torch.equal(decoded, saved)
    assert abs(psnr(decoded) - psnr(saved)) < 0.1
    mean = (frames / 255).mean((1, 3, 4), keepdim=True).expand_as(saved)
    assert psnr(saved) > psnr(mean)
