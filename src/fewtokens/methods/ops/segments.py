"""Splitting a budget over groups of tokens, and ranking tokens within their groups; shared by several methods."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.plan import group_count
from fewtokens.core.tokens import Tokens


def rank_within(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """The rank of each token within its group, lowest value first, ties in their order; int64 [B,N].

    Args:
        values: [B,N].
        group: int64 [B,N], 0..groups-1; -1 for no group (its rank is undefined).
        groups: the number of groups.
    """
    order = values.argsort(dim=1, stable=True)
    label = group.masked_fill(group < 0, groups)
    by_group = order.gather(1, label.gather(1, order).argsort(dim=1, stable=True))
    label = label.gather(1, by_group)
    size = label.new_zeros(len(label), groups + 1).scatter_add_(1, label, torch.ones_like(label))
    rank = torch.arange(values.shape[1], device=values.device) - (size.cumsum(1) - size).gather(1, label)
    return torch.empty_like(rank).scatter_(1, by_group, rank)


def proportional_order(rank: Tensor, weight: Tensor) -> Tensor:
    """The sort key with which any number of first tokens represents groups in proportion to their weights, float [B,N].

    Sainte-Lague's method: rank r of a group with weight w has the key (r + 1/2) / w. The K tokens with the lowest keys
    include, for some common factor, the weight of every group times this factor, rounded to the nearest. Groups whose
    part is below half a token get none, and the other groups get the rest.

    Args:
        rank: [B,N], rank of each token within its group, best first.
        weight: [B,N], weight of its group.
    """
    return (rank + 0.5) / weight.clamp(min=1e-9)


def cut_where_frames_change(
    similarity: Tensor, lengths: Tensor, segments: int | Tensor, tau: float
) -> tuple[Tensor, Tensor]:
    """Segments of similar frames: the first and last frame of each frame's segment, int64 [B,T].

    The video is cut after frame t if the frame's similarity to the next one is below tau, or among the segments-1
    lowest of the video (ties go to the first).

    Args:
        similarity: [B,T-1], similarity of each frame to the next.
        lengths: [B], number of real frames; each padded frame is a separate segment.
        segments: minimum number of segments, one for all videos or int64 [B].
        tau: similarity below which there is always a cut.
    """
    B, T = similarity.shape[0], similarity.shape[1] + 1
    t = torch.arange(T - 1, device=similarity.device)
    inside = t < lengths[:, None] - 1
    rank = similarity.masked_fill(~inside, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
    lowest = segments - 1 if isinstance(segments, int) else segments[:, None] - 1
    cut = (rank < lowest) | (similarity < tau) | ~inside
    starts = torch.cat([torch.ones_like(lengths[:, None], dtype=torch.bool), cut], 1)  # a segment starts here
    frame = torch.arange(T, device=similarity.device).expand(B, -1)
    first = frame.masked_fill(~starts, 0).cummax(1).values
    ends = torch.cat([starts[:, 1:], starts[:, :1]], 1)
    last = frame.masked_fill(~ends, T).flip(1).cummin(1).values.flip(1)
    return first, last


def split_over_frames(tokens: Tokens, counts: Tensor) -> Tensor:
    """Splits budgets over the frames of a video: the sum of the budgets before each frame, int64 [B,T+1].

    Each frame gets its part in proportion to its tokens, which is the same number for complete frames. What cannot be
    divided is spread over the video.

    Args:
        tokens: [B,N,C]; padded frames have none and get nothing.
        counts: int64 [B], the budget of each video, at most the number of its tokens.
    """
    size = group_count(tokens.frame.masked_fill(~tokens.mask, -1), tokens.grid.T)
    before = F.pad(size.cumsum(1), (1, 0))
    return before * counts[:, None] // before[:, -1:].clamp(min=1)
