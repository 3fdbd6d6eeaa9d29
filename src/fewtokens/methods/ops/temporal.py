"""Comparison of each token with the same position in the previous frame; shared by the temporal methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewtokens.core.plan import readable, take_rows
from fewtokens.core.shapes import shape_repr
from fewtokens.core.tokens import Tokens

# Large inputs are compared in blocks of this many entries per thread (1 MiB in float32), which stay in the cache.
_BLOCK_ENTRIES = 1 << 18

Measure = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class LastFrame:
    """The streaming state between chunks: the last frame. Its size never grows.

    Attributes:
        values: [B,H*W,...], the values of the token that stands for each cell of the frame.
        has_token: bool [B,H*W], which cells have such a token.
    """

    values: Tensor
    has_token: Tensor

    __repr__ = shape_repr

    @staticmethod
    def from_tokens(values: Tensor, tokens: Tokens) -> LastFrame:
        """The last frame of `tokens`, with `values` [B,N,...]."""
        token = tokens.assignment[:, -tokens.grid.cells_per_frame :]
        return LastFrame(take_rows(values.detach(), token.clamp(min=0)), token >= 0)


def compare_with_previous(
    measure: Measure, values: Tensor, tokens: Tokens, last: LastFrame | None = None, *, before: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compares each token with the token at the same position in the previous frame.

    Args:
        measure: maps rows [B,n,...] and later rows [B,n,...] to numbers [B,n]; see `in_blocks`.
        values: [B,N,...], with one row per token.
        tokens: the tokens of the rows.
        last: the frame before the first one of `tokens`, in a stream.
        before: [B,N,...], rows of the tokens as the previous ones. Default: `values`.

    Returns:
        The measure, float32 [B,N] (0 without a previous token), and which tokens have one, bool [B,N].
    """
    before = values if before is None else before
    n = tokens.grid.cells_per_frame
    if _one_per_cell(tokens):
        # The previous frame is the same rows shifted by a frame, so nothing is moved.
        later = measure(before[:, :-n], values[:, n:])
        first = later.new_zeros(tokens.B, n)
        exists = torch.zeros_like(tokens.mask[:, :n])
        if last is not None:
            first, exists = measure(last.values.to(before.dtype), values[:, :n]), last.has_token
        exists = tokens.mask & torch.cat([exists, tokens.mask[:, n:]], 1)
        return torch.cat([first, later], 1).masked_fill(~exists, 0), exists
    index = tokens.previous_frame_index()
    exists = index >= 0
    previous = take_rows(before, index.clamp(min=0))
    if last is not None:
        position = tokens.cell % n
        first = tokens.mask & (tokens.frame == 0) & last.has_token.gather(1, position)
        earlier = take_rows(last.values, position).to(before.dtype)
        previous = torch.where(first.reshape(first.shape + (1,) * (values.ndim - 2)), earlier, previous)
        exists = exists | first
    return measure(previous, values).masked_fill(~exists, 0), exists


def _one_per_cell(tokens: Tokens) -> bool:
    """Whether there is one token per cell, in raster order; False where that cannot be read at no cost."""
    if tokens.grid.cells != tokens.N or not readable(tokens.assignment):
        return False
    index = torch.arange(tokens.N)
    return bool(((tokens.assignment == index) | ~tokens.mask).all())


def in_blocks(measure: Measure, a: Tensor, b: Tensor) -> Tensor:
    """Returns measure(a, b), computed in blocks of rows that stay in the cache.

    Args:
        measure: maps rows [B,n,...] and [B,n,...] to numbers [B,n] or [B,n,...].
        a, b: [B,N,...], both of the same shape.
    """
    if torch.compiler.is_compiling():
        return measure(a, b)
    size = max(1, _BLOCK_ENTRIES * torch.get_num_threads() * a.shape[1] // max(1, a.numel()))
    if size >= a.shape[1]:
        return measure(a, b)
    return torch.cat([measure(p, q) for p, q in zip(a.split(size, 1), b.split(size, 1), strict=True)], 1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity over the last axis, in float32; 1 between two zero vectors.

    It makes no normalized copy of either input. Two zero vectors count as equal: a black patch that stays black has not
    changed. So do vectors so short that their squares underflow (below 1e-22).
    """
    return in_blocks(_cosine, a, b) if a.ndim > 2 and a.shape == b.shape else _cosine(a, b)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.float(), b.float()
    a_norm, b_norm = a.norm(dim=-1), b.norm(dim=-1)
    similarity = (a * b).sum(-1) / (a_norm * b_norm).clamp(min=1e-30)
    return similarity.clamp(-1, 1).masked_fill((a_norm == 0) & (b_norm == 0), 1.0)
