"""Free Video-LLM: the boxes and counts of its published code, and where it differs."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.pooling.free_video_llm import FreeVideoLlm, box_cells, box_corner, relevance_weights


def box(points, share, rows=12, columns=24):
    """(left, right, top, bottom) of the published box around cells (row, column)."""
    weight = torch.zeros(rows, columns, dtype=torch.float64)
    for y, x in points:
        weight[y, x] = 1
    cells = box_cells(box_corner(weight.flatten(), rows, columns, share, "mean"), rows, columns, share)
    y, x = cells // columns, cells % columns
    assert len(cells.unique()) == (int(y.max() - y.min()) + 1) * (int(x.max() - x.min()) + 1)
    return int(x.min()), int(x.max()) + 1, int(y.min()), int(y.max()) + 1


def test_boxes_of_the_published_code():
    """On the 12 x 24 cells as which it reads the pooled frame."""
    assert box([(0, 0)], 0.8) == (0, 21, 0, 11)
    assert box([(11, 23)], 0.8) == (3, 24, 1, 12)
    assert box([(5, 20), (5, 21), (6, 20)], 0.5) == (7, 24, 1, 9)


def test_counts_of_the_paper():
    method = FreeVideoLlm()
    assert method.planned_count(Grid(50, 24, 24)) == 231 * 3 + 231 * 5 + 16 * 50 == 2648
    frames = torch.randn(1, 50, 24, 24, 4, generator=torch.Generator().manual_seed(0))
    assert method(Tokens.from_cells(frames), text=torch.randn(1, 3, 4)).check().count.tolist() == [2648]
    assert method.planned_count(Grid(100, 24, 24)) == 2648


def test_the_published_center_hardly_depends_on_the_question():
    """The question is about a corner of 5 x 3 of 12 x 6 cells, of which the box has 7 x 3."""
    generator = torch.Generator().manual_seed(0)
    scores = 0.02 * torch.randn(12, 6, generator=generator)
    scores[7:, 3:] += 0.3
    inside = {}
    for center in ("score", "mean"):
        weight = relevance_weights(scores.flatten(), 0.3, center)
        cells = box_cells(box_corner(weight, 12, 6, 0.3, center), 12, 6, 0.3)
        inside[center] = sum(cell // 6 >= 7 and cell % 6 >= 3 for cell in cells.tolist())
    assert inside["score"] == 15 and inside["mean"] <= 10


def video(T=8, H=4, W=5):
    """All cells are the same, but frame 2 and, in frame 6, the last rows and columns, which are what the text asks."""
    frames = torch.zeros(1, T, H, W, 4)
    frames[..., 0] = 1
    frames[:, 2, ..., 1] = 5
    frames[:, 6, 2:, 3:, 1] = 9
    return Tokens.from_cells(frames), torch.tensor([[[0.0, 1.0, 0.0, 0.0]]])


def test_streams_against_the_frames():
    tokens, text = video()
    method = FreeVideoLlm(2, middle=3, fast=4, side=2, roi=0.3)
    out = method(tokens, text=text).check()
    # Slow frames 2 and 6; middle ones 0, 8/3 and 16/3; fast ones 2 and 6, then the first of the equal ones.
    frame = out.positions[0, :, 0].long().tolist()
    rows, columns = 2, 2  # round(4 sqrt(.3)), round(3 sqrt(.3))
    expected = [0] * 8 + [1] * 4 + [2] * 12 + [5] * 4 + [6] * 8
    assert frame == expected and len(expected) == method.planned_count(tokens.grid) == 5 * rows * columns + 4 * 4
    # The box of frame 6 is in the corner of the question, at the maximum of each pair of columns.
    of_six = out.features[0, -4:]
    assert of_six[:, 1].tolist() == [9, 9, 9, 9]
    y, x = out.positions[0, -4:, 1], out.positions[0, -4:, 2]
    assert y.tolist() == [2, 2, 3, 3] and x.tolist() == [2.5, 4, 2.5, 4]


def test_the_negative_relevance_moves_the_box_away():
    tokens, text = video()
    found = {}
    for relevance in ("text", "negative"):
        out = FreeVideoLlm(8, middle=1, fast=1, side=1, roi=0.1, relevance=relevance)(tokens, text=text)
        (found[relevance],) = out.features[0][out.positions[0, :, 0] == 6][-1:, 1].tolist()
    assert found == {"text": 9, "negative": 0}


def test_invalid_arguments():
    for arguments, message in [({"slow": 0}, "slow"), ({"roi": 0.0}, "roi"), ({"roi": 1.2}, "roi"),
                               ({"center": "top"}, "center"), ({"relevance": "no"}, "relevance")]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            FreeVideoLlm(**arguments)
    tokens, _ = video()
    with pytest.raises(ValueError, match="text of 4 channels, got 3"):
        FreeVideoLlm()(tokens, text=torch.zeros(1, 2, 3))
