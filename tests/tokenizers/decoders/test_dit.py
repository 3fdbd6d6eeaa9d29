"""The diffusion transformer: slots, guidance, latents of an autoencoder, and dependence on tokens after training."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers import create_tokenizer
from fewtokens.tokenizers.blocks.repa import Repa
from fewtokens.tokenizers.decoders.dit import Dit
from fewtokens.video import synthetic

OPTIONS = {"stride": (1, 8, 8), "size": (32, 3), "slots": 4, "patch": 4, "steps": 2}


def build(**options) -> Dit:
    """A small decoder with random weights in the layers that are zero at the start."""
    torch.manual_seed(0)
    decoder = Dit(6, **{**OPTIONS, **options}).eval()
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if "modulation" in name or "output" in name:
                parameter.normal_(std=0.3)
    return decoder


def slots(count: int = 4, T: int = 1) -> Tokens:
    """Tokens [2,count,6] of clips of T x 1 x 4 cells, which is at least as many."""
    generator = torch.Generator().manual_seed(0)
    cells = Tokens.from_cells(torch.randn(2, T, 1, 4, 6, generator=generator))
    return cells.replace(
        **{name: getattr(cells, name)[:, :count] for name in ("features", "positions", "sizes", "mask")},
        assignment=torch.full_like(cells.assignment, -1),
    )


@torch.no_grad()
@pytest.mark.parametrize("objective", ["flow", "x"])
def test_untrained_network_predicts_zero(objective):
    decoder = Dit(6, **OPTIONS, objective=objective)
    z, s = torch.randn(2, 1, 2, 8, 48), torch.rand(2)
    assert torch.equal(decoder.predict(z, s, decoder.conditions(slots()))[0], torch.zeros_like(z))
    frames = decoder(slots())
    assert frames.shape == (2, 1, 3, 8, 32)
    # Without velocity the sample is its noise.
    assert float(frames.std()) == pytest.approx(1 if objective == "flow" else 0, abs=0.1)


@torch.no_grad()
def test_missing_tokens_have_the_null_vector_of_their_slot():
    decoder = build()
    whole = slots(4)
    null = whole.features.clone()
    null[:, 3] = decoder.null[3]
    expected = decoder(whole.replace(features=null))
    assert torch.equal(decoder(slots(3)), expected)
    mask = whole.mask.clone()
    mask[:, 3] = False
    assert torch.equal(decoder(whole.replace(mask=mask)), expected)
    assert not torch.allclose(decoder(whole), expected)
    with pytest.raises(ValueError, match="dit has 4 slots, got 8 tokens"):
        decoder(slots(8, T=2))


@torch.no_grad()
@pytest.mark.parametrize("network", [None, "dct"])
def test_frames_depend_on_tokens_and_seed_only(network):
    decoder = build(network=network, patch=1 if network else 4)
    tokens = slots()
    frames = decoder(tokens)
    assert frames.shape == (2, 1, 3, 8, 32)
    assert torch.equal(frames, decoder(tokens))
    torch.testing.assert_close(
        decoder(tokens.replace(features=tokens.features.flip(0))), frames.flip(0), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(decoder(tokens[1:]), frames[1:], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(decoder(tokens, seed=1), frames)


@torch.no_grad()
def test_guidance():
    decoder, tokens = build(steps=1), slots()
    null = tokens.replace(features=decoder.null.expand(2, -1, -1))
    conditional, unconditional = decoder(tokens), decoder(null)
    torch.testing.assert_close(
        decoder(tokens, guidance=3.0), unconditional + 3 * (conditional - unconditional), rtol=1e-4, atol=1e-4
    )
    assert torch.equal(decoder(tokens, guidance=1.0), conditional)
    torch.testing.assert_close(decoder(null, guidance=5.0, projected=True), unconditional)
    assert not torch.allclose(decoder(tokens, guidance=3.0, projected=True), conditional)


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
def test_the_target_is_the_latent_of_the_autoencoder(objective):
    # A network that predicts the true target has no loss, and its sample decodes to the autoencoder's reconstruction.
    frames = synthetic("pan", frames=1, size=(8, 32)).frames[None].float() / 127.5 - 1
    decoder = build(network="dct", patch=1, objective=objective, steps=20)
    latents = decoder.encoder.encode(frames.transpose(1, 2)).movedim(1, -1)

    def truth(z, s, slots):
        a, b = (share[:, None, None, None, None] for share in decoder.diffusion.path.coefficients(s))
        noise = (z - a * latents) / b
        return (noise - latents if objective == "flow" else noise), z

    decoder.predict = truth
    torch.manual_seed(0)
    assert float(decoder.losses(slots()[:1], frames)["diffusion"]) == pytest.approx(0, abs=1e-6)
    expected = decoder.decoder.decode(latents.movedim(-1, 1)).transpose(1, 2)
    torch.testing.assert_close(decoder(slots()[:1]), expected, rtol=1e-3, atol=1e-3)


def test_patches_may_extend_past_the_edge():
    decoder = build(stride=(1, 6, 6), patch=4)
    grid = slots()
    assert decoder(grid).shape == (2, 1, 3, 6, 24)
    frames = torch.arange(6.0)[:, None].expand(1, 1, 3, 6, 24)
    patches = decoder._to_patches(frames)
    assert patches.shape[1:] == decoder._patches_of(1, 6, 24) == (1, 2, 6, 48)
    assert patches[0, 0, 1, 0].unflatten(0, (4, 4, 3))[:, 0, 0].tolist() == [4, 5, 5, 5]


def test_alignment_with_a_frozen_teacher():
    decoder = build(slots=4).train()
    decoder.alignment = Repa(32, "random", hidden=16, cell=8)
    before = {name: value.clone() for name, value in decoder.alignment.teacher.state_dict().items()}
    frames = torch.rand(2, 1, 3, 8, 32) * 2 - 1
    losses = decoder.losses(slots(), frames)
    assert -1 <= losses["alignment"].item() <= 1
    losses["alignment"].backward()
    assert float(decoder.embed_slots.weight.grad.abs().max()) > 0
    assert decoder.output.project.weight.grad is None
    assert not any(p.requires_grad for p in decoder.alignment.teacher.parameters())
    assert not decoder.alignment.teacher.model.training
    for name, value in decoder.alignment.teacher.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_trained_decoder_listens_to_its_tokens():
    torch.manual_seed(0)
    frames = torch.stack([synthetic(name, frames=1, size=(16, 16)).frames for name in ("pan", "shapes")])
    tokenizer = create_tokenizer(
        "tubelet(32, stride=(1, 8, 8)) | perceiver(4, num_layers=1) > "
        "dit(stride=(1, 8, 8), size=(64, 2), slots=4, patch=4, objective='x', steps=1)"
    ).train()
    optimizer = torch.optim.AdamW(tokenizer.parameters(), 3e-3)
    for _ in range(160):
        loss = sum(tokenizer(frames.repeat(2, 1, 1, 1, 1)).losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokenizer.eval()
    tokens = tokenizer.encode(frames)
    with torch.no_grad():
        decoded = tokenizer.decoder(tokens)
        exchanged = tokenizer.decoder(tokens.replace(features=tokens.features.flip(0)))
        other = tokenizer.decoder(tokens, seed=1)
    target = frames.float() / 127.5 - 1
    contents, noises = (exchanged - decoded).square().mean(), (other - decoded).square().mean()
    assert float(noises) < 0.5 * float(contents)
    assert float((decoded - target).square().mean()) < 0.5 * float((exchanged - target).square().mean())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": (1, 6)}, "three counts"),
        ({"size": (32,)}, "size must be channels"),
        ({"objective": "gan"}, "objective must be one of"),
    ],
)
def test_invalid_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        Dit(6, **{**OPTIONS, **options})
