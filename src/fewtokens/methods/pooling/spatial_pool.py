"""Pooling each frame to a coarser grid, as in pyramid networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.method import Resampled, Resampler
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.per_frame import apply_maps, resample_frames, separable_maps, to_frames, tokens_per_frame


class SpatialPool(Resampler):
    """Average-pools each frame with windows of `side` x `side` patches at a given stride.

    "Spatial pooling", a baseline of TokenLearner (arXiv 2106.11297, section 4), without learned parameters: the mean
    over each window, at the border over the patches inside the frame. The count follows from the frame:
    ceil(H/stride) * ceil(W/stride).

    Args:
        stride: patches from one window to the next, in both directions. Default: 2.
        side: side of a window in patches; windows larger than the stride overlap. Default: None, equal to the stride.
        keep: budget in place of the stride, tokens per frame (e.g. "8/frame") or a fraction of the cells (float);
            selects the smallest stride that meets it.
    """

    full_grid = True
    paper = "TokenLearner, arXiv 2106.11297, section 4"
    license = "original to fewtokens"
    cost = "one pass over the features"

    def __init__(self, stride: int | None = None, *, side: int | None = None, keep: float | str | None = None) -> None:
        super().__init__()
        self.set_budget(keep, units=("per frame", "fraction"), stride=stride)
        self.stride = None if self.budget else 2 if stride is None else stride
        for name, value in (("stride", self.stride), ("side", side)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be at least 1 patch, got {value!r}")
        self.side = side

    def _stride(self, height: int, width: int) -> int:
        if self.budget is None:
            assert self.stride is not None
            return self.stride
        limit = tokens_per_frame(Grid(1, height, width), self.budget)
        return next(s for s in range(1, max(height, width) + 1) if -(-height // s) * -(-width // s) <= limit)

    def maps(self, height: int, width: int, device: torch.device) -> Tensor:
        """The weight of each patch in each window's mean, [M,H*W]; rows sum to 1."""
        stride = self._stride(height, width)
        y, x = (_windows(length, stride, self.side or stride, device) for length in (height, width))
        return separable_maps(y, x)

    def learn(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [F,H,W,C] to tokens [F,M,C] and their maps [F,M,H*W]."""
        return apply_maps(self.maps(x.shape[1], x.shape[2], x.device), x)

    def resample(self, tokens: Tokens, **cues: Any) -> Resampled:
        frames = to_frames(tokens)
        maps = self.maps(tokens.grid.H, tokens.grid.W, tokens.device)
        return resample_frames(tokens, maps.expand(len(frames), -1, -1))

    def planned_count(self, grid: Grid) -> int:
        stride = self._stride(grid.H, grid.W)
        return grid.T * -(-grid.H // stride) * -(-grid.W // stride)


def _windows(length: int, stride: int, side: int, device: torch.device) -> Tensor:
    """The weights of windows along one axis, [windows,length]; rows sum to 1."""
    start = torch.arange(0, length, stride, device=device)[:, None] - (side - stride) // 2
    start = start.clamp(max=length - 1)  # a window smaller than the stride may begin after the last patch
    position = torch.arange(length, device=device)
    member = ((position >= start) & (position < start + side)).float()
    return member / member.sum(1, keepdim=True)
