"""ReVQ: codes by position, a correction that starts at zero, and the frozen autoencoder."""

from __future__ import annotations

import pytest
import torch

from fewtokens.tokenizers import create_tokenizer, get_preset
from fewtokens.tokenizers.decoders.latents import Latents
from fewtokens.video import synthetic


def build():
    torch.manual_seed(0)
    return create_tokenizer("revq", tiny=True)


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return torch.cat([synthetic(kind, frames=4, size=(32, 32)).frames for kind in ("pan", "shapes")])[:, None] / 255


def test_published_tokens_and_bits():
    pytest.importorskip("diffusers")
    with torch.device("meta"):
        published = create_tokenizer("revq")
    layout = published.layout(*get_preset("revq").clip)
    assert (layout.grid, layout.tokens, layout.bits) == ((1, 64, 8), 512, 512 * 14)
    assert published.layout(1, 100, 100).padded == (1, 128, 128)


def test_tokens_are_groups_of_channels_of_a_latent(frames):
    tokenizer = build().eval()
    z = tokenizer.encoder.coder.encode((2 * frames - 1).transpose(1, 2))  # [8,12,1,4,4]
    x = tokenizer.encoder.latents((2 * frames - 1).transpose(1, 2))
    assert x.shape == (8, 3, 1, 16, 4)
    assert torch.equal(x[:, :, 0, 4 * 2 + 1, 3], z[:, 3:6, 0, 2, 3])
    assert torch.equal(tokenizer.decoder.whole(x), z)


def test_a_code_depends_on_the_latents_of_its_group_only(frames):
    quantizer, tokens = build().eval().quantizer, build().eval().encode(frames)
    changed = tokens.replace(features=tokens.features + torch.randn_like(tokens.features))
    changed.features[:, 5] = tokens.features[:, 5]
    assert torch.equal(quantizer(changed).codes[:, 5], quantizer(tokens).codes[:, 5])
    assert not torch.equal(quantizer(changed).codes, quantizer(tokens).codes)


def test_the_correction_starts_at_zero_and_training_lowers_the_error(frames):
    tokenizer = build().train()
    plain = Latents(groups=4, dim=3)
    frozen = {k: v.clone() for k, v in tokenizer.state_dict().items() if "fixed" in k}
    step = tokenizer(frames)
    assert torch.equal(step.frames, plain(step.tokens))
    optimizer = torch.optim.Adam([p for p in tokenizer.parameters() if p.requires_grad], 5e-3)
    errors = []
    for _ in range(80):
        step = tokenizer(frames)
        error = (step.frames - (2 * frames - 1)).square().mean()
        errors.append(float(error.detach()))
        optimizer.zero_grad()
        (sum(step.losses.values()) + error).backward()
        optimizer.step()
    assert len(frozen) == 2
    assert all(torch.equal(tokenizer.state_dict()[k], v) for k, v in frozen.items())
    assert errors[-1] < errors[0] / 3
    # The correction lowers the error of the latents that are decoded.
    with torch.no_grad():
        tokens = tokenizer.eval().pipeline(frames)
        z = tokenizer.encoder.latents((2 * frames - 1).transpose(1, 2))
        quantized = tokens.unmerge().movedim(-1, 1)
        assert (tokenizer.decoder.correct(quantized) - tokenizer.decoder.whole(z)).square().mean() < (
            quantized - z
        ).square().mean()
