"""Long videos in bounded memory: encoding and decoding chunk by chunk, with the result of the whole up to rounding.

Libraries choose the algorithm of a product or convolution by its size: that of one row of tokens already differs from
the same row among others by about 1e-7. So a value at the border between two codes may get the other code.

writer = EncodedWriter(tokenizer)
for tokens in encode_chunks(tokenizer, fewtokens.stream("long.mp4", chunk=32)):
    writer.add(tokens)
writer.save("long.safetensors")

for frames in decode_chunks(tokenizer, read_encoded("long.safetensors", tokenizer)):
    ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.inputs import to_frames
from fewtokens.core.tokens import Tokens
from fewtokens.tokenizers.parts import to_signed
from fewtokens.tokenizers.tokenizer import Tokenizer, pad


def can_encode_chunks(tokenizer: Tokenizer) -> bool:
    """Whether a video of any length can be encoded in bounded memory: in windows, or by steps of causal parts."""
    return chunk_frames(tokenizer) is not None


def _encodes_steps(tokenizer: Tokenizer) -> bool:
    kind = type(tokenizer)
    own = kind._encode is not Tokenizer._encode or kind._recode is not Tokenizer._recode
    causal = all(method.causal for method in tokenizer.methods)
    return tokenizer.encoder.streams and causal and not own and not tokenizer.stores_assignment


def _decodes_steps(tokenizer: Tokenizer, tokens: Tokens) -> bool:
    kind = type(tokenizer)
    own = kind._decode is not Tokenizer._decode or kind._restore is not Tokenizer._restore
    full = tokens.grid.cells == tokens.N and not tokenizer.stores_assignment
    return tokenizer.decoder.streams and full and not own


def chunk_frames(tokenizer: Tokenizer, *, rows: int = 4) -> tuple[int, int] | None:
    """Returns the frames of the first chunk and of each later one, or None if a video is encoded whole.

    Args:
        tokenizer: the tokenizer.
        rows: rows of cells in time of one step; windows have their own length.
    """
    if tokenizer.window is not None:
        return tokenizer.window, tokenizer.window
    if not _encodes_steps(tokenizer):
        return None
    later = rows * tokenizer.encoder.stride[0]
    return later + int(tokenizer.encoder.first_frame), later


@torch.no_grad()
def encode_chunks(tokenizer: Tokenizer, chunks: Iterable[Any], *, rows: int = 4) -> Iterator[Tokens]:
    """Encodes a video that is given in chunks, in bounded memory.

    A tokenizer with a window encodes window by window, one without by steps of its encoder and methods, which must then
    be causal. Either way the result is that of `Tokenizer.encode`, up to rounding.

    Args:
        tokenizer: the tokenizer.
        chunks: frames [T,3,H,W] or `Video`s of any lengths, in order, such as those of `fewtokens.stream`.
        rows: rows of cells in time of one step.

    Yields:
        Tokens without times, to be given to `EncodedWriter.add` in order; `meta["size"]` counts the frames of the part.

    Raises:
        ValueError: the tokenizer has neither a window nor causal parts that process chunks, or there are no frames.
    """
    encoder = tokenizer.encoder
    lengths = chunk_frames(tokenizer, rows=rows)
    if lengths is None:
        raise ValueError(
            f"{encoder.name} with these methods cannot encode a video in chunks; encode it whole, or build the "
            "tokenizer with a window"
        )
    t = encoder.stride[0]
    state: Any = None
    states: list[Any] = [None] * len(tokenizer.methods)
    started = False
    for frames in _regroup(chunks, *lengths):
        size = [frames.shape[1], *frames.shape[-2:]]
        if tokenizer.window is not None:
            whole = pad(frames, (tokenizer.window, size[1], size[2])) if started else frames
            tokens = tokenizer.encode(whole)
        else:
            length, height, width = encoder.padded(*size)
            frames = pad(frames, (-(-size[0] // t) * t if started else length, height, width))
            x = to_signed(frames.to(tokenizer.device)).to(encoder.dtype).transpose(1, 2)
            latents, state = encoder.step(x, state)
            cells = latents.movedim(1, -1)
            tokens = Tokens.from_cells(cells)
            for number, method in enumerate(tokenizer.methods):
                tokens, states[number] = method.step(tokens, states[number])
        started = True
        yield tokens.replace(meta={**tokens.meta, "size": size, "tokenizer": tokenizer.spec}, aux={})
    if not started:
        raise ValueError("there are no frames to encode")


@torch.no_grad()
def decode_chunks(tokenizer: Tokenizer, tokens: Tokens, *, rows: int = 4) -> Iterator[Tensor]:
    """Decodes one video chunk by chunk: window by window, or by steps of a decoder that supports them.

    Any other decoder decodes the video at once. The concatenated frames are those of `Tokenizer.decode`, up to
    rounding.

    Args:
        tokenizer: the tokenizer.
        tokens: the result of `Tokenizer.encode` or `read_encoded`, of one video.
        rows: rows of cells in time of one step.

    Yields:
        Frames [T,3,H,W], float32 in 0..1.

    Raises:
        ValueError: several videos, or codes that are missing or outside the codebook.
    """
    total, height, width = tokens.meta.get("size") or tokenizer.encoder.pixels(tokens.grid)
    windows = tokenizer.window is not None and tokenizer.window < total
    if tokens.B > 1 and not windows:
        raise ValueError(f"decode_chunks decodes one video, got {tokens.B}")
    if windows:
        for b in range(tokens.B):
            left = min(tokenizer.window or 0, total - b * (tokenizer.window or 0))
            yield tokenizer.decode(tokens.select([b]).replace(meta={"size": [left, height, width]}))[0]
        return
    if not _decodes_steps(tokenizer, tokens):
        yield tokenizer.decode(tokens)[0]
        return
    state, done = None, 0
    per_row = tokens.grid.cells_per_frame
    for start in range(0, tokens.grid.T, rows):
        part = slice(start * per_row, (start + rows) * per_row)
        features = tokens.features[:, part]
        grid = replace(tokens.grid, T=features.shape[1] // per_row, times=None, lengths=None)
        cells = Tokens.from_cells(features.to(tokenizer.device, tokenizer.encoder.dtype), grid)
        if tokenizer.quantizer is not None:
            codes = None if tokens.codes is None else tokens.codes[:, part].to(tokenizer.device)
            cells = cells.replace(codes=codes)
            tokenizer._check_codes(cells, tokenizer.quantizer)
            cells = tokenizer.quantizer.restore(cells)
        decoded, state = tokenizer.decoder.step(cells, state)
        frames = ((decoded[0].float() + 1) / 2).clamp(0, 1)[: total - done, :, :height, :width]
        done += len(frames)
        if len(frames):
            yield frames


def _regroup(chunks: Iterable[Any], first: int, later: int) -> Iterator[Tensor]:
    """Yields frames [1,n,3,H,W]: `first` of them, then `later` at a time, and the rest."""
    waiting: list[Tensor] = []
    needed = first
    for chunk in chunks:
        frames, _ = to_frames(chunk)
        if frames.shape[0] > 1:
            raise ValueError(f"chunks must be of one video, got {frames.shape[0]}")
        waiting.append(frames)
        while (count := sum(part.shape[1] for part in waiting)) >= needed:
            joined = torch.cat(waiting, 1)
            yield joined[:, :needed]
            waiting = [joined[:, needed:]] if count > needed else []
            needed = later
    if waiting:
        yield torch.cat(waiting, 1)
