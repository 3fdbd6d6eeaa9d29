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

    Sainte-Lague's rule: place r of a group of share s comes at (r + 1/2) / s. Taking the first K tokens by this gives
    K in all, at any K, and every group its share rounded to the nearest by one common factor. Where many groups have
    shares below half a token they get none, and the others what would have been theirs.

    Args:
        rank: place of each token within its group, best first, [B,N].
        share: of its group, [B,N].
    """
    return (rank + 0.5) / share.clamp(min=1e-9)


def cut_where_frames_change(likeness: Tensor, lengths: Tensor, segments: int, tau: float) -> tuple[Tensor, Tensor]:
    """Segments of like frames: the first and last frame of each frame's segment, int64 [B,T].

    There is a cut after frame t where its likeness to the next one is below tau, or among the segments-1 lowest of the
    video (the first of equals).

    Args:
        likeness: [B,T-1] of each frame to the next.
        lengths: [B], real frames of each video; those after them are segments of their own.
    """
    B, T = likeness.shape[0], likeness.shape[1] + 1
    t = torch.arange(T - 1, device=likeness.device)
    inside = t < lengths[:, None] - 1
    rank = likeness.masked_fill(~inside, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
    cut = (rank < segments - 1) | (likeness < tau) | ~inside
    starts = torch.cat([torch.ones_like(lengths[:, None], dtype=torch.bool), cut], 1)  # a segment begins here
    frame = torch.arange(T, device=likeness.device).expand(B, -1)
    first = frame.masked_fill(~starts, 0).cummax(1).values
    ends = torch.cat([starts[:, 1:], starts[:, :1]], 1)
    last = frame.masked_fill(~ends, T).flip(1).cummin(1).values.flip(1)
    return first, last
