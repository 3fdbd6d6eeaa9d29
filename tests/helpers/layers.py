"""What a method inside a language model sees, made by hand."""

from __future__ import annotations

import torch

from fewtokens.core.grid import Grid
from fewtokens.core.layer_method import LayerState, PlacedVideo
from fewtokens.core.tokens import Tokens

COLUMNS = range(3, 11)


def state(seed: int = 0) -> LayerState:
    """Two prompts of 3 words, 2 x 2 x 2 cells of a video and 2 words."""
    generator = torch.Generator().manual_seed(seed)
    grid, columns = Grid(2, 2, 2), torch.arange(3, 11)
    hidden = torch.randn(2, 13, 16, generator=generator)
    video = torch.zeros(2, 13, dtype=torch.bool)
    video[:, columns] = True
    videos = [PlacedVideo(b, columns, Tokens.from_cells(hidden[b : b + 1, columns], grid)) for b in range(2)]
    scores = torch.rand(2, 13, generator=generator)
    rope = torch.randn(2, 13, 4, generator=generator), torch.randn(2, 13, 4, generator=generator)
    return LayerState(hidden, rope, video, video.sum(1), scores, videos)


def best(row: list[float], columns: list[int], count: int) -> list[int]:
    """The `count` columns with the highest numbers, in their order; the first of equal ones."""
    return sorted(sorted(columns, key=lambda column: -row[column])[:count])


def chosen(kept: torch.Tensor) -> list[list[int]]:
    """The columns of videos that stay in each prompt; words count as neither."""
    return [[column for column in COLUMNS if row[column]] for row in kept.tolist()]
