"""The threshold that fits a budget, for methods with a threshold."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def find_threshold(
    enough: Callable[[Tensor, Tensor], Tensor], low: float, high: float, like: Tensor, *, halvings: int = 8
) -> Tensor:
    """The threshold of each video that leaves the fewest tokens, but enough of them, by bisection, float32 [B].

    Args:
        enough: maps thresholds [B], and lower bounds [B] of all that follow, to whether they leave enough tokens, bool
            [B]; higher ones leave more, and `high` leaves enough.
        low, high: range of thresholds.
        like: a tensor [B] on the device of the result.
        halvings: number of bisections; 8 split the range into 256 steps.
    """
    below, above = (torch.full(like.shape, edge, device=like.device) for edge in (low, high))
    for _ in range(halvings):
        middle = (below + above) / 2
        passes = enough(middle, below)
        below, above = torch.where(passes, below, middle), torch.where(passes, middle, above)
    return above
