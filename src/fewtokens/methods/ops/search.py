"""Exact budgets for methods with a threshold: the threshold is searched, and excess tokens are merged."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.bipartite import merge_to

# Number of bisections of the threshold's range.
_HALVINGS = 8


def reduce_to_budget(reduce: Callable[[Tensor], Tokens], target: Tensor, low: float, high: float) -> Tokens:
    """Reduces to exactly `target` tokens: the threshold that leaves the fewest not below it, then pairwise merging.

    Args:
        reduce: maps thresholds [B] to tokens; a higher threshold leaves more, and `high` leaves all.
        target: [B], number of tokens of each video.
        low, high: range of thresholds.
    """
    below = torch.full(target.shape, low, device=target.device)
    above = torch.full(target.shape, high, device=target.device)
    with torch.no_grad():
        for _ in range(_HALVINGS):
            middle = (below + above) / 2
            enough = reduce(middle).count >= target
            below, above = torch.where(enough, below, middle), torch.where(enough, middle, above)
    reduced = reduce(above)
    return reduced.apply(merge_to(reduced, target))
