"""Positions (t, h, w) of short prompts."""

from __future__ import annotations

import pytest
import torch

from fewtokens.serve.mrope import (
    COLUMNS,
    Medium,
    append_positions,
    offset_after,
    place,
    prompt_positions,
    split_positions,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_positions_travel_exactly_in_any_dtype(dtype):
    """A bfloat16 has 8 significant bits, so 257 would become 256."""
    rows = torch.randn(300, 5).to(dtype)
    positions = torch.randint(0, 2**24, (300, 3))
    positions[0] = torch.tensor([257, 4099, 2**24 - 1])
    wide = append_positions(rows, positions, lead=9)
    assert wide.dtype == dtype and wide.shape == (300, 5 + COLUMNS)
    part = split_positions(wide[270:])
    assert torch.equal(part.rows, rows[270:]) and torch.equal(part.positions, positions[270:])
    assert (part.first, part.lead) == (270, 9)


def test_text_positions_are_known_before_the_media():
    """Text, a video of 4 columns and 3 positions, text, an image of 2 columns and 5 positions, text."""
    positions, offset = prompt_positions(10, [Medium(2, 4, 3), Medium(7, 2, 5)])
    assert positions.shape == (3, 10)
    assert positions[0, [0, 1, 6, 9]].tolist() == [0, 1, 5, 11]
    assert offset == 12 - 10 == offset_after(positions)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 100])
def test_rows_are_placed_in_any_chunks(chunk):
    """A video with two rows of text before its rows and one after, and an image."""
    media = [Medium(2, 6, 9), Medium(10, 2, 4)]
    marks = torch.zeros(14, dtype=torch.bool)
    marks[4:7] = marks[10:12] = True  # the rows of the video that are placeholders, and those of the image
    video = torch.tensor([[0, 0, 0], [1, 1, 1], [2, 2, 3], [2, 4, 2], [2, 4, 5], [8, 8, 8]])
    image = torch.tensor([[0, 0, 1], [0, 3, 0]])
    wide = {
        2: append_positions(torch.zeros(6, 1), video, lead=2),
        10: append_positions(torch.zeros(2, 1), image),
    }
    positions, _ = prompt_positions(14, media)
    for start in range(0, 14, chunk):
        pieces = [
            split_positions(rows[max(0, start - offset) : start + chunk - offset])
            for offset, rows in wide.items()
            if offset < start + chunk and offset + len(rows) > start
        ]
        positions = place(positions, marks, pieces, start)
    expected = torch.arange(14).expand(3, -1).clone()
    expected[:, 2:8] = video.T + 2
    expected[:, 8:10] = torch.tensor([11, 12])
    expected[:, 10:12] = image.T + 13
    expected[:, 12:] = torch.tensor([17, 18])
    assert torch.equal(positions, expected)
    assert offset_after(positions) == 19 - 14


def test_a_cached_beginning_is_not_needed():
    """If the engine has the first video in its cache, only the second is placed, and the text is still right."""
    marks = torch.zeros(10, dtype=torch.bool)
    marks[1:4] = marks[5:8] = True
    positions, _ = prompt_positions(10, [Medium(1, 3, 6), Medium(5, 3, 6)])
    piece = split_positions(append_positions(torch.zeros(3, 1), torch.tensor([[0, 0, 0], [4, 0, 1], [9, 1, 0]])))
    placed = place(positions, marks, [piece], 5)
    assert placed[:, 5:].T.tolist() == [[8, 8, 8], [12, 8, 9], [17, 9, 8], [14, 14, 14], [15, 15, 15]]
    assert offset_after(placed) == 16 - 10
