"""CDT: published sizes, chunks, and a decoder that depends on its latents after training."""

from __future__ import annotations

import torch

from fewtokens.tokenizers import create_tokenizer, get_preset
from fewtokens.video import synthetic


def test_published_size():
    with torch.device("meta"):
        published = create_tokenizer("cdt")
    # Counted in the authors' code, base model: 43,413,056 in the encoder.
    assert sum(p.numel() for p in published.parameters()) == 192_592_755
    assert sum(p.numel() for p in published.encoder.parameters()) == 43_413_056
    layout = published.layout(*get_preset("cdt").clip)
    assert (layout.grid, layout.tokens, layout.bits) == ((5, 32, 32), 5120, 5120 * 16 * 32)


@torch.no_grad()
def test_chunks_equal_the_whole():
    torch.manual_seed(0)
    tokenizer = create_tokenizer("cdt", tiny=True).double().eval()
    tokenizer.decoder.unet.output.weight.normal_(std=0.1)
    frames = synthetic("pan", frames=9, size=(16, 16)).frames[None].double() / 255
    x, state, latents = frames.transpose(1, 2) * 2 - 1, None, []
    for chunk in x.split([5, 4], 2):
        part, state = tokenizer.encoder.step(chunk, state)
        latents.append(part)
    torch.testing.assert_close(torch.cat(latents, 2), tokenizer.encoder.latents(x), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_the_decoder_listens_to_its_latents():
    # Exchanged latents exchange the frames; another noise changes them.
    torch.manual_seed(0)
    tokenizer = create_tokenizer("cdt", tiny=True).eval()
    tokenizer.decoder.unet.output.weight.normal_(std=0.1)
    frames = torch.stack([synthetic(name, frames=1, size=(16, 16)).frames for name in ("pan", "shapes")])
    tokens = tokenizer.encode(frames)
    decoded = tokenizer.decoder(tokens)
    exchanged = tokenizer.decoder(tokens.replace(features=tokens.features.flip(0)))
    torch.testing.assert_close(exchanged, decoded.flip(0), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(exchanged, decoded, atol=1e-3)
    assert not torch.allclose(tokenizer.decoder(tokens, seed=1), decoded, atol=1e-3)


def test_training_compares_the_prediction_at_a_random_level():
    torch.manual_seed(0)
    tokenizer = create_tokenizer("cdt", tiny=True).train()
    step = tokenizer(synthetic("pan", frames=1, size=(8, 8)).frames[None])
    assert step.frames.shape == (1, 1, 3, 8, 8)
    assert list(step.losses) == ["gaussian.kl"]
    own = tokenizer.decoder.losses(step.tokens, torch.ones(1, 1, 3, 8, 8))
    # An untrained network predicts 0.
    assert own["diffusion"].item() == 1
