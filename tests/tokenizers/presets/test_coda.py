"""CODA: the sum over scales, the frozen autoencoder, LoRA that starts at zero, and use of the codebook."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fewtokens.methods.ops.codes import usage
from fewtokens.tokenizers import create_tokenizer, get_preset
from fewtokens.tokenizers.decoders.latents import Latents
from fewtokens.video import synthetic


def build():
    torch.manual_seed(0)
    return create_tokenizer("coda", tiny=True)


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    clips = [synthetic(kind, frames=4, size=(32, 32)).frames for kind in ("pan", "shapes")]
    return torch.cat(clips)[:, None].float() / 255


def test_published_tokens_and_bits():
    pytest.importorskip("diffusers")
    with torch.device("meta"):
        published = create_tokenizer("coda")
    assert published.encoder.grid(*get_preset("coda").clip).shape == (1, 32, 32)
    codes = sum(side**2 for side in published.quantizer.scales)
    assert codes == 2240
    assert sum(p.numel() for p in published.parameters()) / 1e6 == pytest.approx(83.8 + 8.6 + 1.05, rel=0.15)


def test_scales_sum_to_the_latents_but_for_the_rest(frames):
    tokenizer = build().eval()
    z = tokenizer.encoder.latents((2 * frames[:2] - 1).transpose(1, 2))[:, :, 0]
    tokens = tokenizer.encode(frames[:2])
    rest, total = z, torch.zeros_like(z)
    book = tokenizer.quantizer.codebook
    for level, side in enumerate((1, 2, 4)):
        values = book.value(book.table)[tokens.codes[:, : side * side, level]]
        detail = (
            F.interpolate(values.mT.unflatten(2, (side, side)), (4, 4), mode="bicubic")
            if side < 4
            else (values.mT.unflatten(2, (4, 4)))
        )
        total, rest = total + detail, rest - detail
    torch.testing.assert_close(total + rest, z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokens.features.mT.unflatten(2, (4, 4)), total, atol=1e-5, rtol=1e-5)
    assert float(tokenizer.bits(tokens).sum()) == 2 * (1 + 4 + 16) * 8


def test_it_starts_as_the_autoencoder_on_quantized_latents_and_trains(frames):
    tokenizer = build().train()
    plain = Latents()
    frozen = {
        k: v.clone()
        for k, v in tokenizer.state_dict().items()
        if "fixed" in k and ("base" in k or "encoder." in k.split("network.")[1])
    }
    step = tokenizer(frames)
    assert torch.equal(step.frames, plain(step.tokens))
    optimizer = torch.optim.Adam([p for p in tokenizer.parameters() if p.requires_grad], 5e-3)
    for _ in range(120):
        step = tokenizer(frames)
        optimizer.zero_grad()
        (sum(step.losses.values()) + (step.frames - (2 * frames - 1)).square().mean()).backward()
        optimizer.step()
    assert len(frozen) == 2
    assert all(torch.equal(tokenizer.state_dict()[k], v) for k, v in frozen.items())
    error = (tokenizer.eval()(frames).frames.detach() - (2 * frames - 1)).square().mean()
    baseline = (2 * frames - 2 * frames.mean(0, keepdim=True)).square().mean()
    assert float(error) < 0.7 * float(baseline)
    assert float(usage(tokenizer.encode(frames).codes.reshape(1, -1, 1), (256,)).share) > 0.2


def test_most_entries_are_used_after_training():
    """The quantizer alone, since its losses do not depend on the frozen decoder; 128 images have 2,688 codes."""
    tokenizer = build().train()
    kinds = [(kind, seed) for seed in range(16) for kind in ("pan", "shapes")]
    images = torch.cat([synthetic(kind, frames=4, size=(32, 32), seed=seed).frames for kind, seed in kinds])[:, None]
    latents = tokenizer.encoder.latents(images.float().transpose(1, 2) / 127.5 - 1).flatten(2).mT
    quantizer, grid = tokenizer.quantizer, tokenizer.encoder.grid(1, 32, 32)
    before = float(usage(tokenizer.encode(images).codes.reshape(1, -1, 1), (256,)).share)
    optimizer = torch.optim.Adam(quantizer.parameters(), 3e-2)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 3e-2 * min(1.0, 2 * (1 - step / 400))
        losses = quantizer.quantize(latents[torch.randint(128, (16,))], None, grid).losses
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    after = float(usage(tokenizer.eval().encode(images).codes.reshape(1, -1, 1), (256,)).share)
    assert after > 0.9 > 1.5 * before, (before, after)
