"""Positions (t, h, w) of a prompt whose videos have few rows, in an engine that prefills in chunks.

The positions of text follow from the grids of the media, so they are exact before anything is encoded. Those of the
rows of a video depend on which cells remain, so they travel with the rows, as extra columns, from the encoder to the
chunk that contains them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fewtokens.core.shapes import shape_repr

# The columns hold digits, since a bfloat16 represents integers exactly only up to 256.
_BASE, _DIGITS = 256, 3
# t, h, w, the index of the row in its item, and `lead`.
_VALUES = 5
COLUMNS = _VALUES * _DIGITS


class Medium(NamedTuple):
    """An image or a video in a prompt.

    Attributes:
        offset: the column of its first row.
        length: number of columns.
        extent: number of positions that it takes; the text after it continues there.
    """

    offset: int
    length: int
    extent: int


class Piece(NamedTuple):
    """Consecutive rows of one item.

    Attributes:
        rows: [K,D].
        positions: int64 [K,3], relative to the start of the item.
        first: the index of the first row in the item.
        lead: number of rows of the item before its first placeholder.
    """

    rows: Tensor
    positions: Tensor
    first: int
    lead: int

    def __repr__(self) -> str:
        return shape_repr(self)


def append_positions(rows: Tensor, positions: Tensor, lead: int = 0) -> Tensor:
    """Appends positions to the rows of one item, in any float dtype.

    Args:
        rows: float [K,D].
        positions: int64 [K,3], values in 0..2**24-1, relative to the start of the item.
        lead: number of rows that are text, before the first row of the encoder.

    Returns:
        [K,D+COLUMNS].
    """
    K = len(rows)
    index = torch.arange(K, device=positions.device)
    values = torch.cat([positions, index[:, None], torch.full_like(index, lead)[:, None]], 1)
    power = _BASE ** torch.arange(_DIGITS, device=values.device)
    digits = (values[..., None] // power % _BASE).flatten(1)
    return torch.cat([rows, digits.to(rows)], 1)


def split_positions(rows: Tensor) -> Piece:
    """Separates consecutive rows of one item from what `append_positions` added."""
    digits = rows[:, -COLUMNS:].long().unflatten(1, (_VALUES, _DIGITS))
    values = (digits * _BASE ** torch.arange(_DIGITS, device=rows.device)).sum(2).cpu()
    return Piece(rows[:, :-COLUMNS], values[:, :3], int(values[0, 3]), int(values[0, 4]))


def prompt_positions(length: int, media: Sequence[Medium]) -> tuple[Tensor, int]:
    """Returns the positions of a prompt before its media are encoded.

    Args:
        length: number of columns of the prompt.
        media: in order.

    Returns:
        int64 [3,length], exact for text; a column of a medium has the last position of that medium, which `place`
        replaces. And the offset of the positions after the prompt from a count of the columns.
    """
    position = torch.ones(length, dtype=torch.int64)
    for medium in media:
        position[medium.offset : medium.offset + medium.length] = 0
        position[medium.offset] = medium.extent
    position = position.cumsum(0) - 1
    return position.expand(3, -1).clone(), offset_after(position[None])


def offset_after(positions: Tensor) -> int:
    """The offset of the positions after a prompt from a count of its columns; they continue from its last column."""
    return int(positions[:, -1].max()) + 1 - positions.shape[1]


def place(positions: Tensor, is_placeholder: Tensor, pieces: Sequence[Piece], computed: int) -> Tensor:
    """Writes the positions of the rows of a chunk.

    Args:
        positions: int64 [3,L] of the prompt.
        is_placeholder: bool [L], the placeholders; those of one item are consecutive, with text between two items.
        pieces: the rows of the chunk, one piece per item, in order.
        computed: number of columns before the chunk.

    Returns:
        int64 [3,L].
    """
    positions = positions.clone()
    marks = is_placeholder.to(positions.device)
    starts = (marks & ~torch.cat([marks.new_zeros(1), marks[:-1]])).nonzero().flatten().tolist()
    for piece in pieces:
        # The rest of an item that began in an earlier chunk is at the beginning of this one.
        column = computed if piece.first else next(s - piece.lead for s in starts if s - piece.lead >= computed)
        origin = column - piece.first
        base = int(positions[0, origin - 1]) + 1 if origin else 0
        computed = column + len(piece.positions)
        positions[:, column:computed] = base + piece.positions.T.to(positions.device)
    return positions
