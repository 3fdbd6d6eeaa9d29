"""Dealing a budget out to groups of tokens, and ranking tokens within their groups; shared by several methods."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rank_within(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """The place of each token among those of its group, lowest value first, equals in their order; int64 [B,N].

    Args:
        values: [B,N].
        group: int64 [B,N], 0..groups-1; -1 is in none (its place means nothing).
    """
    order = values.argsort(dim=1, stable=True)
    label = group.masked_fill(group < 0, groups)
    by_group = order.gather(1, label.gather(1, order).argsort(dim=1, stable=True))
    label = label.gather(1, by_group)
    size = F.one_hot(label, groups + 1).sum(1)
    place = torch.arange(values.shape[1], device=values.device) - (size.cumsum(1) - size).gather(1, label)
    return torch.empty_like(place).scatter_(1, by_group, place)


def deal(rank: Tensor, share: Tensor) -> Tensor:
    """The order in which tokens are taken so that groups get places in proportion to their shares, float [B,N].

    Sainte-Lague's rule: place r of a group of share s comes at (r + 1/2) / s. Taking the first K tokens by this
    gives every group its part, to within one or two, and K in all, at any K.

    Args:
        rank: place of each token within its group, best first, [B,N].
        share: of its group, [B,N].
    """
    return (rank + 0.5) / share.clamp(min=1e-9)
