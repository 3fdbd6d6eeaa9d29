"""Processing groups of tokens (frames, windows, clips) in parallel; shared by several methods."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.plan import Plan, take_rows
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.bipartite import merge_to
from fewtokens.methods.ops.segments import proportional_order, rank_within


def group_sizes(group: Tensor, groups: int) -> Tensor:
    """The number of tokens of each group, int64 [B,groups], from `group` [B,N] (-1 for no group)."""
    return F.one_hot(group.masked_fill(group < 0, groups), groups + 1)[..., :groups].sum(1)


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
    count = group_sizes(group, groups)
    width = max(1, int(count.max()))
    column = rank_within(torch.zeros_like(tokens.sizes), group, groups)
    slot = (group * width + column).masked_fill(group < 0, groups * width)
    index = torch.zeros(tokens.B, groups * width + 1, dtype=torch.int64, device=tokens.device)
    token_index = torch.arange(tokens.N, device=tokens.device).expand_as(slot)
    index = index.scatter(1, slot, token_index)[:, :-1]
    real = (torch.arange(width, device=tokens.device) < count[..., None]).flatten(1)
    features = take_rows(tokens.features, index).masked_fill(~real[..., None], 0)
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
