"""The threshold that fits a budget, for methods with a threshold."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Number of bisections of the threshold's range.
_HALVINGS = 8


def find_threshold(count: Callable[[Tensor], Tensor], target: Tensor, low: float, high: float) -> Tensor:
    """The threshold of each video that leaves the fewest tokens not below its target, by bisection, float32 [B].

    Args:
        count: maps thresholds [B] to numbers of tokens [B]; a higher threshold leaves more, and `high` leaves all.
        target: [B], number of tokens of each video.
        low, high: range of thresholds, split into 256 steps.
    """
    below = torch.full(target.shape, low, device=target.device)
    above = torch.full(target.shape, high, device=target.device)
    for _ in range(_HALVINGS):
        middle = (below + above) / 2
        enough = count(middle) >= target
        below, above = torch.where(enough, below, middle), torch.where(enough, middle, above)
    return above
