"""Processing groups of tokens (frames, windows, clips) in parallel; shared by several methods."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.plan import Plan, flat_rows, group_count, readable, take_rows, weighted_group_sum
from fewtokens.core.shapes import shape_repr
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.bipartite import merge_to
from fewtokens.methods.ops.segments import proportional_order, rank_within

# Methods that compare all tokens of a video do so within windows of this many frames if a video is longer, so that time
# is linear in the number of frames.
WINDOW_FRAMES = 128
# A pack of groups of n tokens has at most this many pairs of tokens, so that its rows stay in the cache.
_MAX_PACK_PAIRS = 1 << 17
# Groups of at most this many tokens are packed together; of larger ones, those of at least 3/4 of the largest.
_SMALL = 16


@dataclass(frozen=True)
class Pack:
    """Groups of about the same size, one per row, of tokens [B,N].

    Attributes:
        group: int64 [G], video * groups + group.
        index: int64 [G,n], video * N + token, in their order; padding repeats the first token of the group.
        real: bool [G,n].
    """

    group: Tensor
    index: Tensor
    real: Tensor

    __repr__ = shape_repr

    def rows(self, values: Tensor, at: Tensor | None = None) -> Tensor:
        """The values [M,C] of the tokens, [G,n,C]; `at` int64 [B*N] is the row of each token. Default: its index."""
        index = self.index if at is None else at[self.index]
        return values.index_select(0, index.flatten()).unflatten(0, index.shape)

    def write(self, out: Tensor, values: Tensor) -> None:
        """Writes values [G,n] of the tokens into `out` [B*N], in place."""
        out.index_copy_(0, self.index.flatten(), torch.where(self.real, values, values[:, :1]).flatten())


def packs(group: Tensor, groups: int) -> Iterator[Pack]:
    """Splits groups of tokens into packs of about the same size, so that little is padded. Reads the sizes.

    Args:
        group: int64 [B,N], 0..groups-1; -1 for no group.
        groups: the number of groups of a video.
    """
    count = len(group) * groups
    label = flat_rows(group, groups)
    order = label.argsort(stable=True)
    size = torch.bincount(label, minlength=count + 1)[:count]
    start = size.cumsum(0) - size
    by_size = size.argsort(descending=True, stable=True)
    smaller = [-width for width in size[by_size].tolist()]  # ascending
    begin, end = 0, bisect_right(smaller, -1)
    while begin < end:
        width = -smaller[begin]
        least = 1 if width <= _SMALL else 3 * width // 4
        stop = min(bisect_right(smaller, -least), begin + max(1, _MAX_PACK_PAIRS // width**2))
        chosen = by_size[begin:stop]
        place = torch.arange(width, device=group.device)
        real = place < size[chosen, None]
        yield Pack(chosen, order[start[chosen, None] + place * real], real)
        begin = stop


def average(features: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The means of tokens with the same target.

    Args:
        features: [B,N,C].
        target: int64 [B,N], a token; -1 for tokens that are not averaged.

    Returns:
        The means in float32 [M,C], and the mean of each target, int64 [B*N] (undefined for others).
    """
    B, N, C = features.shape
    cell = flat_rows(target, N)
    member = cell < B * N
    size = torch.bincount(cell, minlength=B * N + 1)[:-1]
    at = (size > 0).cumsum(0) - 1
    cell = cell.masked_fill(~member, 0)
    dest = at[cell].masked_fill(~member, -1)
    means = weighted_group_sum(
        features.float().reshape(1, B * N, C), 1 / size[cell].clamp(min=1)[None], dest[None], int((size > 0).sum())
    )
    return means[0], at


def check_window(window: int | None) -> None:
    """Raises a ValueError if a number of frames per window is invalid; None is valid."""
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1 (frames), or None for the full video, got {window}")


def frame_windows(tokens: Tokens, counts: Tensor, window: int | None) -> tuple[Tensor, Tensor] | None:
    """Splits videos into windows of consecutive frames, and a budget over them in proportion to their tokens.

    Args:
        tokens: [B,N,C].
        counts: int64 [B], the budgets.
        window: frames per window; None for no windows.

    Returns:
        The window of each token, int64 [B,N] (-1 in padded slots), and the budget of each window, int64 [B,windows];
        None if no video is longer than a window.
    """
    if window is None or window >= tokens.grid.T:
        return None
    group = (tokens.frame // window).masked_fill(~tokens.mask, -1)
    return group, allocate(counts, group_count(group, -(-tokens.grid.T // window)))


def allocate(total: Tensor, size: Tensor, weight: Tensor | None = None) -> Tensor:
    """Splits a `total` of tokens over groups: the number for each group, int64 [B,G]; they sum to the total.

    Each group gets one token, in order until the total is reached; the rest is split in proportion to the weights by
    Sainte-Lague's method, and no group gets more than it has.

    Args:
        total: [B], at most the number of tokens.
        size: [B,G], tokens of each group.
        weight: [B,G], proportions of the groups. Default: the sizes.
    """
    weight = size if weight is None else weight
    slot = torch.arange(max(1, int(size.max())), device=size.device)
    order = proportional_order(slot.expand(*size.shape, -1), weight.float()[..., None].expand(*size.shape, len(slot)))
    order = order.masked_fill(slot == 0, -1.0).masked_fill(slot >= size[..., None], torch.inf)
    rank = order.flatten(1).argsort(dim=1, stable=True).argsort(dim=1)
    return (rank < total[:, None]).reshape(order.shape).sum(2)


def num_frames_to_keep(grid: Grid, budget: int, time: float) -> int:
    """The number of frames to keep if a budget is met by keeping fewer frames and fewer tokens per frame.

    Args:
        grid: the grid of the video.
        budget: tokens of the video.
        time: part of the reduction that applies to frames, in [0, 1]: a fraction keep**time of the frames is kept, but
            enough to meet the budget, and at most one frame per token of it.
    """
    target = round(grid.T * (budget / grid.cells) ** time)
    return min(budget, max(target, -(-budget // grid.cells_per_frame)))


def split_groups(tokens: Tokens, group: Tensor, groups: int) -> tuple[Tokens, Tensor]:
    """Each group as a separate video, on a grid of one row; empty groups have no tokens.

    Args:
        tokens: [B,N,C].
        group: int64 [B,N], 0..groups-1; -1 for no group.
        groups: the number of groups.

    Returns:
        Tokens [B*groups,width,C] in their original order, whose `assignment` is the index in the row; and the slot of
            each token, int64 [B,N]: group * width + index in the row (0 for tokens in no group).
    """
    group = group.masked_fill(~tokens.mask, -1)
    count = group_count(group, groups)
    width = max(1, int(count.max()))
    column = rank_within(torch.zeros_like(tokens.sizes), group, groups)
    slot = (group * width + column).masked_fill(group < 0, groups * width)
    index = torch.zeros(tokens.B, groups * width + 1, dtype=torch.int64, device=tokens.device)
    token_index = torch.arange(tokens.N, device=tokens.device).expand_as(slot)
    index = index.scatter(1, slot, token_index)[:, :-1]
    real = (torch.arange(width, device=tokens.device) < count[..., None]).flatten(1)
    # Groups of equal size in the order of the tokens, such as frames, are the tokens themselves.
    features = tokens.features
    if not readable(index) or not torch.equal(index, token_index) or not bool(real.all()):
        features = take_rows(features, index).masked_fill(~real[..., None], 0)
    rows = tokens.B * groups
    grid = Grid(1, 1, width)
    mask = real.reshape(rows, width)
    return Tokens(
        features=features.reshape(rows, width, -1),
        positions=grid.positions(tokens.device).expand(rows, -1, -1) * mask[..., None],
        sizes=(tokens.sizes.gather(1, index) * real).reshape(rows, width),
        mask=mask,
        assignment=torch.arange(width, device=tokens.device).expand(rows, -1).masked_fill(~mask, -1),
        grid=grid,
    ), slot.masked_fill(group < 0, 0)


def plan_from_groups(dest: Tensor, slot: Tensor, group: Tensor, tokens: Tokens) -> Plan:
    """The plan on `tokens` that sends rows of `split_groups(tokens, ...)` to `dest` [B*groups,width]; -1 to drop.

    No features are moved to compute it.
    """
    rows, width = dest.shape
    column = dest.reshape(tokens.B, -1).gather(1, slot)
    label = (group.clamp(min=0) * width + column).masked_fill((column < 0) | (group < 0), -1)
    return Plan.group(label, tokens, rows // tokens.B * width)


def carry_labels(plan: Plan, label: Tensor, after: Tokens) -> Tensor:
    """Carries labels int64 [B,N], equal among tokens that a plan merges, to the tokens `after` it; -1 for padding."""
    return plan.move(label[..., None].float()).squeeze(2).round().long().masked_fill(~after.mask, -1)


def merge_within(tokens: Tokens, group: Tensor, counts: Tensor) -> Plan:
    """Merges the most similar tokens of each group, pairwise, until it has `counts` [B,groups] tokens."""
    with torch.no_grad():
        parts, slot = split_groups(tokens, group, counts.shape[1])
        dest = merge_to(parts, counts.flatten()).dest
        assert dest is not None
        return plan_from_groups(dest, slot, group, tokens)


def keep_within(
    tokens: Tokens, group: Tensor, counts: Tensor, select: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Plan:
    """Keeps `counts` [B,groups] tokens of each group, those that `select(features, mask, counts)` marks.

    `select` gets each group as a video: [R,n,C], bool [R,n] and [R], and returns bool [R,n].
    """
    parts, slot = split_groups(tokens, group, counts.shape[1])
    kept = select(parts.features, parts.mask, counts.flatten())
    return Plan.keep(kept.reshape(tokens.B, -1).gather(1, slot) & (group >= 0))
