"""Comparing each token with the one at the same place a frame before; shared by the temporal methods."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fewtokens.core.shapes import by_shape
from fewtokens.core.tokens import Tokens


@dataclass(frozen=True)
class LastFrame:
    """What is remembered between chunks: the last frame. Its size never grows.

    Attributes:
        last: [B,H*W,...], of each of its cells the values of the token that stands for it.
        known: bool [B,H*W], which cells have such a token.
    """

    last: Tensor
    known: Tensor

    __repr__ = by_shape

    @staticmethod
    def of(values: Tensor, tokens: Tokens) -> LastFrame:
        """The last frame of tokens, with `values` [B,N,...]."""
        token = tokens.assignment[:, -tokens.grid.cells_per_frame :]
        rows = token.clamp(min=0).reshape(token.shape + (1,) * (values.ndim - 2))
        return LastFrame(values.detach().gather(1, rows.expand(-1, -1, *values.shape[2:])), token >= 0)


def with_previous(values: Tensor, tokens: Tokens, last: LastFrame | None = None) -> tuple[Tensor, Tensor]:
    """The values of each token's predecessor in time.

    Args:
        values: [B,N,...], anything with a row for each token.
        last: the frame before the first one of `tokens`, in a stream.

    Returns:
        The predecessors' values [B,N,...] and which tokens have one, bool [B,N].
    """
    index = tokens.previous_frame_index()
    known = index >= 0
    rows = index.clamp(min=0).reshape(index.shape + (1,) * (values.ndim - 2))
    before = values.gather(1, rows.expand(-1, -1, *values.shape[2:]))
    if last is not None:
        first = tokens.mask & (tokens.frame == 0)
        place = (tokens.cell % tokens.grid.cells_per_frame).reshape(rows.shape)
        earlier = last.last.gather(1, place.expand(-1, -1, *last.last.shape[2:]))
        first = first & last.known.gather(1, place.reshape(first.shape))
        before = before.where(~first.reshape(rows.shape), earlier.to(before.dtype))
        known = known | first
    return before, known


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity over the last axis, in float32 and without a copy of either; 1 between two zeros.

    Two zero vectors count as equal: a black patch that stays black has not changed.
    """
    a, b = a.float(), b.float()
    lengths = a.norm(dim=-1) * b.norm(dim=-1)
    both_zero = (a == 0).all(-1) & (b == 0).all(-1)
    similarity = (a * b).sum(-1) / lengths.clamp(min=1e-30)
    return similarity.clamp(-1, 1).masked_fill(both_zero, 1.0)
