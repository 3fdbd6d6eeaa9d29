"""The threshold that fits a budget, for methods with a threshold."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def find_threshold(
    count: Callable[[Tensor, Tensor], Tensor],
    target: Tensor,
    most: Tensor,
    low: float,
    high: float,
    *,
    halvings: int = 8,
) -> Tensor:
    """The threshold of each video that leaves the fewest tokens, but at least `target`, float32 [B].

    The range is divided into steps, and the search ends as soon as every video has exactly its target or one step left.
    Between two thresholds the logarithm of the count is taken for linear (regula falsi, with the Illinois rule: an end
    that stays twice counts half), which takes 5 to 16 counts for 2**16 steps on features of a video.

    Args:
        count: maps thresholds [B], and lower bounds [B] of all that follow, to the number of tokens they leave, int64
            [B]. It grows with the threshold. From the target on it may be an upper bound, and below the target any
            lower number: 0 if it is not known.
        target: int64 [B], at most `most`.
        most: int64 [B], the number of tokens at `high`.
        low, high: range of thresholds.
        halvings: the range has 2**halvings steps.
    """
    steps = 2**halvings
    goal = _log(target - 0.5)
    below, above, left = torch.zeros_like(target), torch.full_like(target, steps), most
    # Distances of the logarithms at both ends from the goal.
    short, spare = goal - _log(torch.zeros_like(most)), _log(most) - goal
    side = torch.zeros_like(target)

    def threshold(step: Tensor) -> Tensor:
        return low + (high - low) / steps * step.float()

    while bool((searched := (left != target) & (above - below > 1)).any()):
        guess = below + (short / (short + spare) * (above - below)).round().long()
        step = torch.where(searched, guess.maximum(below + 1).minimum(above - 1), above)
        found = count(threshold(step), threshold(below))
        distance, passes = _log(found) - goal, found >= target
        up, down = passes & searched, ~passes & searched
        short = torch.where(down, -distance, torch.where(up & (side == 1), short / 2, short))
        spare = torch.where(up, distance, torch.where(down & (side == -1), spare / 2, spare))
        below, above = torch.where(down, step, below), torch.where(up, step, above)
        left, side = torch.where(up, found, left), up.long() - down.long()
    return threshold(above)


def _log(count: Tensor) -> Tensor:
    """The logarithm of a count; that of 0 is finite, and lower than that of half a token."""
    return count.clamp(min=0.25).log()
