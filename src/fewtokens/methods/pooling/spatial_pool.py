"""Pooling each frame to a coarser grid, as pyramid networks do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.method import Method
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.per_frame import frames_of, learn_with, plan_of, separable


class SpatialPool(Method):
    """Each frame is pooled with a window of `side` patches that moves by `stride`.

    "Spatial pooling", which TokenLearner (arXiv 2106.11297, section 4) is compared with: the mean over windows,
    at the border over what is there. Nothing is learned. The count follows from the frame: ceil(H/stride) *
    ceil(W/stride).

    Args:
        stride: patches from window to window, in both directions.
        side: of a window; None is the stride. Windows larger than the stride overlap.
    """

    resamples = True
    dense = True
    paper = "TokenLearner, arXiv 2106.11297, section 4"
    license = "own"
    cost = "one pass over the features"

    def __init__(self, stride: int = 2, *, side: int | None = None) -> None:
        super().__init__()
        for name, value in (("stride", stride), ("side", stride if side is None else side)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be at least 1 patch, got {value!r}")
        self.stride, self.side = stride, side

    def maps(self, height: int, width: int, device: torch.device) -> Tensor:
        """What each patch gives to each window's mean, [M,H*W]; rows sum to 1."""
        y, x = (self._windows(length, device) for length in (height, width))
        return separable(y, x)

    def _windows(self, length: int, device: torch.device) -> Tensor:
        side = self.side or self.stride
        start = torch.arange(0, length, self.stride, device=device)[:, None] - (side - self.stride) // 2
        place = torch.arange(length, device=device)
        member = ((place >= start) & (place < start + side)).float()
        return member / member.sum(1, keepdim=True)

    def learn(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [F,H,W,C] to tokens [F,M,C] and their maps [F,M,H*W]."""
        return learn_with(self.maps(x.shape[1], x.shape[2], x.device), x)

    def plan(self, tokens: Tokens, **cues: Any) -> Plan:
        frames = frames_of(tokens, self.name)
        maps = self.maps(tokens.grid.H, tokens.grid.W, tokens.device)
        return plan_of(tokens, maps.expand(len(frames), -1, -1))

    def planned_count(self, grid: Grid) -> int:
        return grid.T * -(-grid.H // self.stride) * -(-grid.W // self.stride)
