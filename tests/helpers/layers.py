"""A synthetic state of a language model layer, and the expected decisions."""

from __future__ import annotations

import torch

from fewtokens.core.grid import Grid
from fewtokens.core.layer_method import LayerState, VideoPlacement
from fewtokens.core.tokens import Tokens

COLUMNS = range(3, 11)


def layer_state(seed: int = 0) -> LayerState:
    """Two prompts of 3 text tokens, a video of 2 x 2 x 2 cells, and 2 text tokens."""
    generator = torch.Generator().manual_seed(seed)
    grid, columns = Grid(2, 2, 2), torch.arange(3, 11)
    hidden = torch.randn(2, 13, 16, generator=generator)
    video = torch.zeros(2, 13, dtype=torch.bool)
    video[:, columns] = True
    videos = [VideoPlacement(b, columns, Tokens.from_cells(hidden[b : b + 1, columns], grid)) for b in range(2)]
    scores = torch.rand(2, 13, generator=generator)
    rope = torch.randn(2, 13, 4, generator=generator), torch.randn(2, 13, 4, generator=generator)
    question = torch.zeros_like(video)
    question[:, 11:] = True
    keys = torch.randn(2, 13, 8, generator=generator)
    return LayerState(hidden, rope, video, video.sum(1), scores, videos, question, torch.nn.Identity(), keys)


def top_columns(row: list[float], columns: list[int], count: int) -> list[int]:
    """Returns the `count` columns with the highest scores, ascending; ties go to the first."""
    return sorted(sorted(columns, key=lambda column: -row[column])[:count])


def kept_columns(kept: torch.Tensor) -> list[list[int]]:
    """Returns the kept video columns of each prompt, without text columns."""
    return [[column for column in COLUMNS if row[column]] for row in kept.tolist()]
