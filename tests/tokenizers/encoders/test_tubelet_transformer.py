"""The transformer encoder and its mirror: sizes, first frame, chunks, causality."""

from __future__ import annotations

import pytest
import torch

from fewtokens.tokenizers import Tokenizer

LAYERS = "layers=(('space', 1), ('time', 1), ('block_causal', 1)), heads=2"
CAUSAL = (
    f"tubelet_transformer(16, stride=(2, 4, 4), channels=6, first_frame=True, {LAYERS}) | fsq > "
    f"tubelet_transformer(width=16, stride=(2, 4, 4), first_frame=True, {LAYERS})"
)


def build(spec: str = CAUSAL) -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer.from_spec(spec).eval()


def video(T: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(2, T, 3, 8, 12, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("frames", "rows"), [(1, 1), (2, 2), (3, 2), (5, 3)])
def test_the_first_frame_has_cells_of_its_own(frames, rows):
    tokenizer = build()
    tokens = tokenizer.encode(video(frames))
    assert tokens.grid.shape == (rows, 2, 3)
    assert tokenizer.decode(tokens).shape == (2, frames, 3, 8, 12)


@torch.no_grad()
def test_causality_is_exact_through_codes_and_pixels():
    tokenizer, frames, changed = build(), video(7), video(7)
    changed[:, 3:] = 1 - changed[:, 3:]
    before, after = tokenizer.encode(frames), tokenizer.encode(changed)
    assert tokenizer.encoder.causal
    assert torch.equal(before.codes[:, :12], after.codes[:, :12])
    assert not torch.equal(before.codes[:, 12:18], after.codes[:, 12:18])
    decoded = tokenizer.decode(before)
    mixed = before.replace(codes=torch.cat([before.codes[:, :12], after.codes[:, 12:]], 1))
    assert torch.equal(tokenizer.decode(mixed)[:, :3], decoded[:, :3])
    assert not torch.equal(tokenizer.decode(mixed)[:, 3:5], decoded[:, 3:5])


@torch.no_grad()
def test_chunks_equal_the_whole():
    tokenizer, frames = build(), video(9)
    tokens = tokenizer.encode(frames)
    x, state, latents = frames.transpose(1, 2) * 2 - 1, None, []
    for chunk in x.split([3, 2, 4], 2):
        out, state = tokenizer.encoder.step(chunk, state)
        latents.append(out)
    torch.testing.assert_close(torch.cat(latents, 2), tokenizer.encoder.latents(x), rtol=1e-5, atol=1e-5)
    state, decoded = None, []
    whole = tokenizer.decoder(tokens)
    for rows in ((0, 1), (1, 3), (3, 5)):
        part = tokens.unmerge()[:, rows[0] : rows[1]]
        out, state = tokenizer.decoder.step(type(tokens).from_cells(part), state)
        decoded.append(out)
    torch.testing.assert_close(torch.cat(decoded, 1), whole, rtol=1e-5, atol=1e-5)


def test_full_attention_neither_streams_nor_is_causal():
    encoder = build("tubelet_transformer(16, heads=2, layers=(('full', 1),)) > tubelet_transformer(heads=6)").encoder
    assert not encoder.causal
    assert not encoder.streams
    with pytest.raises(ValueError, match="cannot encode a video in chunks"):
        encoder.step(torch.zeros(1, 3, 1, 16, 16))


def test_the_gradient_reaches_both_embeddings():
    tokenizer = build().train()
    tokenizer(video(3)).frames.square().sum().backward()
    for layer in (tokenizer.encoder.embed.first, tokenizer.encoder.embed.rest):
        assert float(layer.weight.grad.abs().max()) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("stride=(1, 8, 8), first_frame=True", "first_frame requires"),
        ("stride=(1, 8)", "three counts"),
        ("channels=0", "channels must be"),
    ],
)
def test_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(f"tubelet_transformer({arguments}) > tubelet")
