"""The plainest tokens of a frame: it is cut into as many rectangles, each is averaged."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.method import Method
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.per_frame import check_num_tokens, frames_of, learn_with, plan_of, planned, separable


def rows_and_columns(num_tokens: int, height: int, width: int) -> tuple[int, int]:
    """The split into exactly `num_tokens` rectangles whose parts are nearest to squares."""
    pairs = [(rows, num_tokens // rows) for rows in range(1, num_tokens + 1) if num_tokens % rows == 0]
    return min(pairs, key=lambda pair: (abs(math.log(height * pair[1] / (width * pair[0]))), pair[0]))


class GridSplit(Method):
    """Each frame is cut into `num_tokens` equal rectangles, and each is averaged.

    "Fixed grid split", an alternative that TokenLearner (arXiv 2106.11297, appendix) is compared with. Nothing
    is learned. Where a rectangle would not end on a patch, that patch belongs to the one that holds its centre; a
    frame with fewer patches than rectangles repeats patches.

    Args:
        num_tokens: tokens of each frame.
    """

    resamples = True
    dense = True
    paper = "TokenLearner, arXiv 2106.11297, table 14"
    license = "own"
    cost = "one pass over the features"

    def __init__(self, num_tokens: int = 8) -> None:
        super().__init__()
        self.num_tokens = check_num_tokens(num_tokens)

    def maps(self, height: int, width: int, device: torch.device) -> Tensor:
        """What each patch gives to each rectangle's mean, [M,H*W]; rows sum to 1."""
        rows, columns = rows_and_columns(self.num_tokens, height, width)
        y, x = (_parts(length, parts, device) for length, parts in ((height, rows), (width, columns)))
        return separable(y, x)

    def learn(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [F,H,W,C] to tokens [F,M,C] and their maps [F,M,H*W]."""
        return learn_with(self.maps(x.shape[1], x.shape[2], x.device), x)

    def plan(self, tokens: Tokens, **cues: Any) -> Plan:
        frames = frames_of(tokens, self.name)
        maps = self.maps(tokens.grid.H, tokens.grid.W, tokens.device)
        return plan_of(tokens, maps.expand(len(frames), -1, -1))

    def planned_count(self, grid: Grid) -> int:
        return planned(grid, self.num_tokens)


def _parts(length: int, parts: int, device: torch.device) -> Tensor:
    """Which of `length` places belong to which of `parts` equal parts, [parts,length], rows sum to 1."""
    place = torch.arange(length, device=device)
    if parts <= length:
        owner = ((place + 0.5) * parts / length).long()
        member = (owner == torch.arange(parts, device=device)[:, None]).float()
    else:
        of = ((torch.arange(parts, device=device) + 0.5) * length / parts).long()
        member = (of[:, None] == place).float()
    return member / member.sum(1, keepdim=True)
