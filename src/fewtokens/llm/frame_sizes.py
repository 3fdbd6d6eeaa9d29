"""Frames of several sizes in one video, as `f2c`, `quota` and `kffocus` select them.

Families that take frames of any size get an item for each run of consecutive frames of equal size, in order and with
their times. In all others every frame is encoded in full, and its cells are averaged to its own grid after the vision
tower, which then saves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.method import Reducer
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.plan import Plan
from fewtokens.core.selection import Selection, pool_frames
from fewtokens.core.tokens import Tokens
from fewtokens.llm.backends.base import Backend
from fewtokens.llm.backends.rows import VisualFeatures
from fewtokens.llm.interface import unwrap
from fewtokens.llm.pixels import PreparedVideo
from fewtokens.llm.prompts import Processor
from fewtokens.video import Video


class AverageToSizes(Reducer):
    """Averages the cells of each frame to the grid that a selector chose, see `pool_frames`.

    Args:
        selection: one entry per frame of the grid.
    """

    stage = "tokens"
    full_grid = True

    def __init__(self, selection: Selection) -> None:
        super().__init__()
        self.selection = selection

    def plan(self, tokens: Tokens, **cues: Any) -> Plan:
        return pool_frames(tokens, self.selection)


def average_first(pipeline: Pipeline, selection: Selection) -> Pipeline:
    """Returns a chain in which frames get their sizes first.

    Raises:
        ValueError: a method of the chain acts on pixels, inside the encoder, or on whole frames.
    """
    for method in pipeline.methods:
        if method.stage != "tokens" or method.full_grid:
            raise ValueError(
                f"{method.name} works on frames of one size; use a selector without sizes, or methods that reduce any "
                "tokens, such as tome"
            )
    return Pipeline([AverageToSizes(selection), *pipeline.methods])


def runs(cells: Tensor) -> list[tuple[int, int]]:
    """Returns the start and the end of each run of consecutive frames with equal cells, int64 [K,2]."""
    border = (cells[1:] != cells[:-1]).any(1).nonzero().squeeze(1) + 1
    edges = [0, *border.tolist(), len(cells)]
    return list(pairwise(edges))


def prepare_runs(backend: Backend, processor: Processor, model: Any, video: Video) -> PreparedVideo:
    """As `Processor.prepare`, for a family that takes frames of any size (`Backend.any_size`).

    Args:
        video: frames of one size, whose `selection` says to which size each is reduced.

    Returns:
        The inputs of all runs in order, and the text for all of them.
    """
    model = unwrap(model)
    size = backend.frame_size(model, processor, video)
    assert size is not None
    side = backend.cell_side(model, processor)
    cells = video.selection.cells(size[0] // side, size[1] // side)
    parts = []
    for start, end in runs(cells):
        rows, columns = cells[start].tolist()
        part = replace(video, frames=video.frames[start:end], times=video.times[start:end], selection=None)
        parts.append(backend.prepare_at(model, processor, part, (rows * side, columns * side)))
    inputs = {name: torch.cat([part.inputs[name] for part in parts]) for name in parts[0].inputs}
    return PreparedVideo(inputs, backend.between_runs(processor).join(part.text for part in parts))


def share_budget(visuals: Sequence[VisualFeatures]) -> None:
    """Makes the runs of a video share the budget of a chain by their numbers of cells, as the grids of an image."""
    counts = [0 if visual.grid is None else visual.grid.cells for visual in visuals]
    for index, visual in enumerate(visuals):
        visual.part = (sum(counts[:index]), sum(counts))


def describe_sizes(visuals: Sequence[VisualFeatures], selection: Selection | None) -> list[tuple[int, int, int]]:
    """Returns (steps, rows, columns) in cells of each run of frames of equal size, whose product is its tokens.

    Args:
        visuals: the runs, or one video.
        selection: the sizes to which the frames of one video are averaged; None for runs.
    """
    grids = [visual.grid for visual in visuals if visual.grid is not None]
    if selection is None:
        return [grid.shape for grid in grids]
    cells = selection.cells(grids[0].H, grids[0].W)
    return [(end - start, *cells[start].tolist()) for start, end in runs(cells)]
