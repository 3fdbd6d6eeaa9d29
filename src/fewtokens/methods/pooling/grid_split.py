"""Grid split: each frame is divided into equal rectangles, and each rectangle is averaged."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.method import Resampled, Resampler
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.per_frame import apply_maps, resample_frames, separable_maps, to_frames, tokens_per_frame


def rows_and_columns(num_tokens: int, height: int, width: int) -> tuple[int, int]:
    """The rows and columns of a split into exactly `num_tokens` rectangles that are as close to squares as possible."""
    pairs = [(rows, num_tokens // rows) for rows in range(1, num_tokens + 1) if num_tokens % rows == 0]
    return min(pairs, key=lambda pair: (abs(math.log(height * pair[1] / (width * pair[0]))), pair[0]))


class GridSplit(Resampler):
    """Divides each frame into equal rectangles and averages each.

    "Fixed grid split", a baseline of TokenLearner (arXiv 2106.11297, appendix), without learned parameters. A patch
    that crosses the border of rectangles belongs to the one that contains its center; a frame with fewer patches than
    rectangles repeats patches.

    Args:
        keep: budget, tokens per frame (e.g. "8/frame") or a fraction of the cells (float). Default: "8/frame".
    """

    full_grid = True
    paper = "TokenLearner, arXiv 2106.11297, table 14"
    license = "original to fewtokens"
    cost = "one pass over the features"

    def __init__(self, keep: float | str = "8/frame") -> None:
        super().__init__()
        self.set_budget(keep, units=("per frame", "fraction"))
        assert self.budget is not None
        self.num_tokens = int(self.budget.value) if self.budget.unit == "per frame" else None

    def _per_frame(self, grid: Grid) -> int:
        assert self.budget is not None
        return tokens_per_frame(grid, self.budget)

    def maps(self, height: int, width: int, device: torch.device) -> Tensor:
        """The weight of each patch in each rectangle's mean, [M,H*W]; rows sum to 1."""
        rows, columns = rows_and_columns(self._per_frame(Grid(1, height, width)), height, width)
        y, x = (_parts(length, parts, device) for length, parts in ((height, rows), (width, columns)))
        return separable_maps(y, x)

    def learn(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [F,H,W,C] to tokens [F,M,C] and their maps [F,M,H*W]."""
        return apply_maps(self.maps(x.shape[1], x.shape[2], x.device), x)

    def resample(self, tokens: Tokens, **cues: Any) -> Resampled:
        frames = to_frames(tokens)
        maps = self.maps(tokens.grid.H, tokens.grid.W, tokens.device)
        return resample_frames(tokens, maps.expand(len(frames), -1, -1))

    def planned_count(self, grid: Grid) -> int:
        return grid.T * self._per_frame(grid)


def _parts(length: int, parts: int, device: torch.device) -> Tensor:
    """The weights of `length` positions in `parts` equal parts, [parts,length]; rows sum to 1."""
    position = torch.arange(length, device=device)
    if parts <= length:
        owner = ((position + 0.5) * parts / length).long()
        member = (owner == torch.arange(parts, device=device)[:, None]).float()
    else:
        source = ((torch.arange(parts, device=device) + 0.5) * length / parts).long()
        member = (source[:, None] == position).float()
    return member / member.sum(1, keepdim=True)
