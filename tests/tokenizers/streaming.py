"""Checks of causal tokenizers: no output depends on the future, and chunks give what the whole gives."""

from __future__ import annotations

import torch
from torch import Tensor

from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers import Tokenizer


def noise(*size: int, seed: int = 0) -> Tensor:
    """Random frames [1,3,T,H,W] in -1..1."""
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@torch.no_grad()
def check_encoder_causality(tokenizer: Tokenizer, frames: int = 9, size: int = 32) -> None:
    """Changing the frames of the last row of cells must leave the earlier rows bit-equal, and change the last."""
    encoder = tokenizer.encoder
    x = noise(frames, size, size)
    changed = x.clone()
    changed[:, :, -encoder.stride[0] :] = noise(encoder.stride[0], size, size, seed=1)
    before, after = encoder.latents(x), encoder.latents(changed)
    assert torch.equal(before[:, :, :-1], after[:, :, :-1])
    assert not torch.equal(before[:, :, -1], after[:, :, -1])


@torch.no_grad()
def check_decoder_causality(tokenizer: Tokenizer, rows: int = 3, cells: int = 4) -> None:
    """Changing the last row of cells must leave the earlier frames bit-equal, and change each of the last."""
    decoder = tokenizer.decoder
    tokens = random_cells(decoder.dim, rows, cells)
    features = tokens.features.clone()
    features[:, -cells * cells :] = torch.randn(1, cells * cells, decoder.dim)
    before, after = decoder(tokens), decoder(tokens.replace(features=features))
    last = decoder.stride[0]
    assert torch.equal(before[:, :-last], after[:, :-last])
    assert all(not torch.equal(before[:, -i], after[:, -i]) for i in range(1, last + 1))


@torch.no_grad()
def check_encoder_chunks(tokenizer: Tokenizer, chunks: tuple[int, ...] = (1, 2, 1), size: int = 32) -> None:
    """Encoding in chunks of these rows of cells must equal the whole."""
    encoder = tokenizer.encoder
    first, t = int(encoder.first_frame), encoder.stride[0]
    frames = [rows * t - (t - 1) * first * (i == 0) for i, rows in enumerate(chunks)]
    x, state, parts = noise(sum(frames), size, size), None, []
    for chunk in x.split(frames, 2):
        part, state = encoder.step(chunk, state)
        parts.append(part)
    assert [part.shape[2] for part in parts] == list(chunks)
    torch.testing.assert_close(torch.cat(parts, 2), encoder.latents(x), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def check_decoder_chunks(tokenizer: Tokenizer, chunks: tuple[int, ...] = (1, 2, 1), cells: int = 4) -> None:
    """Decoding in chunks of these rows of cells must equal the whole."""
    decoder = tokenizer.decoder
    tokens = random_cells(decoder.dim, sum(chunks), cells)
    state, parts = None, []
    for chunk in tokens.unmerge().split(list(chunks), 1):
        part, state = decoder.step(Tokens.from_cells(chunk), state)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), decoder(tokens), atol=1e-5, rtol=1e-5)


def random_cells(dim: int, rows: int, cells: int) -> Tokens:
    """Random tokens of `rows` x `cells` x `cells` cells."""
    generator = torch.Generator().manual_seed(3)
    return Tokens.from_cells(torch.randn(1, rows, cells, cells, dim, generator=generator))


def millions(module: torch.nn.Module) -> float:
    """The number of parameters in millions."""
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6
