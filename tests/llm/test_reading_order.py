"""Merged tokens in the order of their cells, as in an engine."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.llm import compress
from fewtokens.llm.backends.rows import VisualFeatures
from fewtokens.llm.prompt_editor import in_reading_order, nearest_cell
from fewtokens.llm.visuals import ReducedVisual
from fewtokens.methods.merging.scissor import Scissor
from fewtokens.serve import reduce
from tests.llm.tiny import VIDEO, prompt, tiny


def is_sorted(values: torch.Tensor) -> bool:
    return bool((values.diff() >= 0).all())


def test_the_order_is_that_of_an_engine():
    """A token of two cells of the first frame and one of the second has the time 1/3, after all others of its frame."""
    grid = Grid(2, 2, 3)
    rows = torch.eye(12)
    rows[1] = rows[6] = rows[0]  # (0, 0, 0), (0, 0, 1) and (1, 0, 0)
    tokens = Scissor(keep=10)(Tokens.from_cells(rows[None], grid))
    assert not is_sorted(nearest_cell(tokens.positions[0], grid.shape))
    # Two more rows stand for newlines, which stay at the end.
    features, newlines = tokens.features[0], torch.randn(2, 12)
    layers = [torch.cat([2 * features, newlines])]
    visual = in_reading_order(
        ReducedVisual(VisualFeatures("video", torch.cat([features, newlines]), deepstack=layers), tokens)
    )
    served = reduce("scissor(keep=10)", rows, grid)
    assert served.cell.tolist() == [0, *range(2, 6), *range(7, 12)]
    assert visual.tokens is not None
    assert torch.equal(nearest_cell(visual.tokens.positions[0], grid.shape), served.cell)
    assert torch.equal(visual.tokens.assignment[0], served.assignment)
    for values in (visual.tokens.features[0], visual.visual.features[:10], visual.visual.deepstack[0][:10] / 2):
        torch.testing.assert_close(values, served.rows)
    assert torch.equal(visual.visual.features[10:], newlines)


def test_tokens_of_learned_queries_keep_their_order():
    tokens = Tokens.from_cells(torch.randn(1, 12, 4), Grid(2, 2, 3))
    queries = tokens.replace(positions=tokens.positions.flip(1), attribution=torch.eye(12)[None].flip(1))
    visual = ReducedVisual(VisualFeatures("video", queries.features[0]), queries)
    assert in_reading_order(visual) is visual


@pytest.mark.parametrize("positions", ["keep", "average"])
def test_placeholders_and_positions_are_in_reading_order(positions):
    one = prompt("qwen2_5_vl", ("text", 3), ("video", 4), ("text", 3))
    short = compress(tiny("qwen2_5_vl"), one.inputs, "kmeans(keep=12)", positions=positions)
    (tokens,) = short.tokens
    cells = nearest_cell(tokens.positions[0], tokens.grid.shape)
    columns = (short.inputs["input_ids"][0] == VIDEO).nonzero().squeeze(1)
    t, y, x = short.inputs["position_ids"][1:, 0, columns]
    assert is_sorted(t)
    assert is_sorted(cells) == (positions == "keep")
    if positions == "keep":
        _, height, width = tokens.grid.shape
        start = 4  # columns before the video
        assert torch.equal((y - start) * width + x - start, cells % (height * width))
