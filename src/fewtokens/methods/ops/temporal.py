"""Comparison of each token with the same position in the previous frame; shared by the temporal methods."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fewtokens.core.shapes import shape_repr
from fewtokens.core.tokens import Tokens


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
        rows = token.clamp(min=0).reshape(token.shape + (1,) * (values.ndim - 2))
        return LastFrame(values.detach().gather(1, rows.expand(-1, -1, *values.shape[2:])), token >= 0)


def with_previous(values: Tensor, tokens: Tokens, last: LastFrame | None = None) -> tuple[Tensor, Tensor]:
    """The values of the token at the same position in the previous frame.

    Args:
        values: [B,N,...], with one row per token.
        tokens: the tokens of the rows.
        last: the frame before the first one of `tokens`, in a stream.

    Returns:
        The previous values [B,N,...] and which tokens have them, bool [B,N].
    """
    index = tokens.previous_frame_index()
    has_previous = index >= 0
    rows = index.clamp(min=0).reshape(index.shape + (1,) * (values.ndim - 2))
    previous = values.gather(1, rows.expand(-1, -1, *values.shape[2:]))
    if last is not None:
        first = tokens.mask & (tokens.frame == 0)
        position = (tokens.cell % tokens.grid.cells_per_frame).reshape(rows.shape)
        earlier = last.values.gather(1, position.expand(-1, -1, *last.values.shape[2:]))
        first = first & last.has_token.gather(1, position.reshape(first.shape))
        previous = previous.where(~first.reshape(rows.shape), earlier.to(previous.dtype))
        has_previous = has_previous | first
    return previous, has_previous


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity over the last axis, in float32; 1 between two zero vectors.

    It makes no normalized copy of either input. Two zero vectors count as equal: a black patch that stays black has not
    changed.
    """
    a, b = a.float(), b.float()
    lengths = a.norm(dim=-1) * b.norm(dim=-1)
    both_zero = (a == 0).all(-1) & (b == 0).all(-1)
    similarity = (a * b).sum(-1) / lengths.clamp(min=1e-30)
    return similarity.clamp(-1, 1).masked_fill(both_zero, 1.0)
