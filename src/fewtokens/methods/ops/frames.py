"""Arithmetic of the methods that select frames."""

from __future__ import annotations

import torch
from torch import Tensor


def spread_rank(total: int) -> Tensor:
    """Returns an order of indices whose every prefix is evenly spread: the rank of each, int64 [total].

    Multiples of the golden ratio, modulo 1.
    """
    return ((torch.arange(total, dtype=torch.float64) * 0.6180339887498949) % 1).argsort(stable=True).argsort()


def ranked(scores: Tensor) -> Tensor:
    """Returns the indices of scores [T] in descending order; equal scores are in an evenly spread order."""
    spread = spread_rank(len(scores)).argsort()
    return spread[scores[spread].argsort(descending=True, stable=True)]


def min_max(scores: Tensor) -> Tensor:
    """Returns scores [T] scaled to 0..1; zeros if they are all equal, where the published codes divide 0 by 0."""
    low, high = scores.min(), scores.max()
    return (scores - low) / (high - low) if high > low else torch.zeros_like(scores)


def fill_up(quota: Tensor, capacity: Tensor, total: int, order: Tensor) -> Tensor:
    """Raises quotas until they add up to `total`, by one at a time in an order, skipping those that are full.

    Args:
        quota: int64 [n].
        capacity: int64 [n], at least as large together as `total`.
        total: the sum of the result.
        order: int64 [n], which quotas are raised first.
    """
    quota = torch.minimum(quota, capacity)
    while (missing := total - int(quota.sum())) > 0:
        raised = order[(quota < capacity)[order]][:missing]
        quota[raised] += 1
    return quota


def share_out(weight: Tensor, budget: float, cap: float) -> Tensor:
    """Shares a budget in proportion to weights, at most `cap` each, so that what exceeds the cap goes to the others.

    Args:
        weight: [n], at least 0; equal shares if all are 0.
        budget: sum of the shares, unless all are full.
        cap: maximum of a share.

    Returns:
        Shares, float64 [n].
    """
    weight = weight.double()
    share = torch.zeros_like(weight)
    full = torch.zeros_like(weight, dtype=torch.bool)
    # Each pass fills at least one share, or is the last one.
    for _ in range(len(weight)):
        rest = torch.where(full, 0, weight)
        if float(rest.sum()) <= 0:
            rest = (~full).double()
        share = torch.where(full, cap, rest / rest.sum().clamp(min=1e-300) * (budget - cap * int(full.sum())))
        over = (share >= cap) & ~full
        if not bool(over.any()):
            break
        full |= over
    return share.clamp(0, cap)


def near_square(cells: Tensor) -> Tensor:
    """Returns the largest nearly square grids of at most these numbers of cells, int64 [n] to [n,2] (rows, columns).

    Rows are the rounded-down root, and there may be one more column; at least 1 x 1.
    """
    rows = cells.double().sqrt().floor().long().clamp(min=1)
    return torch.stack([rows, rows + (rows * (rows + 1) <= cells)], 1)


def add_least_similar(features: Tensor, selected: Tensor, count: int, by: str) -> Tensor:
    """Adds the frames that are the least similar to those selected so far, in turn.

    Args:
        features: unit vectors [T,C].
        selected: int64 [n], at least one.
        count: number of frames in the result, at most T.
        by: similarity to the selected frames: "max", that of the most similar one, or "mean".

    Returns:
        int64 [count], in the order of selection. Equal frames are added from the first one on.
    """
    similar = features @ features[selected].T
    near = similar.amax(1) if by == "max" else similar.sum(1)
    taken = torch.zeros(len(features), dtype=torch.bool)
    taken[selected] = True
    order = selected.tolist()
    while len(order) < count:
        index = int(near.masked_fill(taken, torch.inf).argmin())
        taken[index] = True
        order.append(index)
        added = features @ features[index]
        near = torch.maximum(near, added) if by == "max" else near + added
    return torch.tensor(order[:count])
