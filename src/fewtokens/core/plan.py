"""What a method decides: where each token goes. Axis letters are explained in `tokens.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from fewtokens.core.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Plan:
    """What a method decides: where each of N tokens goes. Data, so that it can be printed, saved, composed.

    A plan is hard (`dest`) or soft (`weights`). It is reused on any tensor that has a row for each token
    (keys, DeepStack features, position ids) by `plan.move`.

    Args:
        count: int64 [B], how many tokens come out for each video.
        num_slots: M, the slots that come out; at least `count.max()`. Stated, so that moving needs no look at
            the data.
        dest: int64 [B,N], the new index of each token, -1 where it is dropped.
        representative: int64 [B,M] or None. If given, output m is a copy of token representative[m], and the other
            tokens sent to m only count in its size (the first patch of a run stands for the run). If None, output m
            is the mean of all tokens sent there, weighted by their sizes.
        weights: float [B,M,N], for a soft plan: output m is sum_n weights[m,n] * token[n].
    """

    count: Tensor
    num_slots: int
    dest: Tensor | None = None
    representative: Tensor | None = None
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.dest is None) == (self.weights is None):
            raise ValueError("a plan is either hard (dest) or soft (weights)")

    @staticmethod
    def identity(tokens: Tokens) -> Plan:
        """Everything stays where it is."""
        index = torch.arange(tokens.N, device=tokens.device).expand(tokens.B, -1)
        return Plan(tokens.count, tokens.N, index.masked_fill(~tokens.mask, -1), index)

    @staticmethod
    def keep(kept: Tensor, width: int | None = None) -> Plan:
        """Keeps the tokens marked True in `kept` [B,N], in their order, and drops the others."""
        count = kept.sum(1)
        width = int(count.max()) if width is None else width
        dest = (kept.cumsum(1) - 1).masked_fill(~kept, -1)
        representative = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
        return Plan(count, width, dest, representative)

    @staticmethod
    def top(scores: Tensor, count: Tensor, tokens: Tokens) -> Plan:
        """Keeps the `count` [B] real tokens with the highest `scores` [B,N], in their order.

        Equal scores are taken from the front.
        """
        count = torch.minimum(count.to(tokens.device), tokens.count)
        scores = scores.float().masked_fill(~tokens.mask, -torch.inf)
        rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return Plan.keep((rank < count[:, None]) & tokens.mask)

    @staticmethod
    def group(labels: Tensor, tokens: Tokens, groups: int | None = None) -> Plan:
        """Merges the tokens with equal `labels` int64 [B,N] (0..groups-1, any order; -1 drops a token).

        Groups come out in the order of their mean time, then row, then column; numbers that no token
        carries leave no gap.
        """
        groups = int(labels.max()) + 1 if groups is None else groups
        labels = labels.masked_fill(~tokens.mask, -1)
        sizes = sums(tokens.sizes[..., None], labels, groups)  # [B,groups,1]
        used = sums(torch.ones_like(tokens.sizes)[..., None], labels, groups).squeeze(2) > 0
        where = sums(tokens.sizes[..., None] * tokens.positions, labels, groups) / sizes.clamp(min=1e-12)
        order = by_position(where, used)  # [B,groups]: place -> label
        place = order.argsort(dim=1)
        dest = place.gather(1, labels.clamp(min=0)).masked_fill(labels < 0, -1)
        count = used.sum(1)
        return Plan(count, int(count.max()), dest)

    @staticmethod
    def from_assignment(before: Tokens, after: Tokens) -> Plan:
        """The hard plan that leads from one set of tokens to a later one made from it.

        Known from the sources alone, since all the cells of a token travel together. Used to move other
        tensors along after a method that works in several steps.
        """
        slot = before.assignment.masked_fill(before.assignment < 0, before.N)
        dest = before.assignment.new_full((before.B, before.N + 1), -1).scatter(1, slot, after.assignment)
        return Plan(after.count, after.N, dest[:, : before.N])

    def then(self, later: Plan) -> Plan:
        """This plan and a later one in one step. Both must be hard; means are taken in one step too."""
        if self.dest is None or later.dest is None:
            raise ValueError("only hard plans compose; apply soft plans one after the other")
        dest = follow(later.dest, self.dest)
        representative = None
        if self.representative is not None and later.representative is not None:
            representative = self.representative.gather(1, later.representative)
        return Plan(later.count, later.num_slots, dest, representative)

    def move(self, values: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Carries `values` [B,N,D] to [B,M,D] as decided; slots that stay empty are zero.

        Args:
            values: any tensor with a row for each token. Means are summed in float32 (float64 stays) and
                given back in the dtype of `values`. Differentiable.
            sizes: [B,N] weights of the tokens in a mean; None weighs them equally.
        """
        wide = values.dtype if values.dtype == torch.float64 else torch.float32
        if self.weights is not None:
            return (self.weights.to(wide) @ values.to(wide)).to(values.dtype)
        assert self.dest is not None
        if self.representative is not None:
            moved = values.gather(1, self.representative[..., None].expand(-1, -1, values.shape[2]))
            real = torch.arange(self.num_slots, device=values.device) < self.count.to(values.device)[:, None]
            return moved.masked_fill(~real[..., None], 0)
        share, _ = self.shares(torch.ones_like(self.dest, dtype=wide) if sizes is None else sizes.to(wide))
        return self.average(values, share)

    def shares(self, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Of a hard plan: the part of each token in its group's mean [B,N], and the groups' sizes [B,M]."""
        assert self.dest is not None
        total = sums(sizes[..., None], self.dest, self.num_slots).squeeze(2)
        floor = torch.finfo(sizes.dtype).tiny
        return sizes / total.gather(1, self.dest.clamp(min=0)).clamp(min=floor), total

    def average(self, values: Tensor, share: Tensor) -> Tensor:
        """Sums of share * values by group, [B,M,D]: a token alone in its group has share 1 and stays bit-equal."""
        assert self.dest is not None
        return sums(share[..., None] * values.to(share.dtype), self.dest, self.num_slots).to(values.dtype)


def sums(values: Tensor, dest: Tensor, width: int) -> Tensor:
    """Sums rows by destination: [B,N,D] -> [B,width,D]; destination -1 is left out."""
    B, _, D = values.shape
    rows = torch.arange(B, device=values.device)[:, None] * (width + 1) + dest.masked_fill(dest < 0, width)
    out = values.new_zeros(B * (width + 1), D)
    out.index_add_(0, rows.flatten(), values.reshape(-1, D))
    return out.reshape(B, width + 1, D)[:, :width]


def by_position(positions: Tensor, real: Tensor) -> Tensor:
    """Order by t, then y, then x, what is not real last: int64 [B,N].

    To 1/1024 of a cell, so that the last digit of a mean, which depends on the order of summing, does not decide.
    """
    positions = (positions * 1024).round()
    order = torch.arange(positions.shape[1], device=positions.device).expand(positions.shape[0], -1)
    for key in (positions[..., 2], positions[..., 1], positions[..., 0], (~real).float()):
        order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
    return order


def follow(dest: Tensor, source: Tensor) -> Tensor:
    """Where each cell goes when its token goes to `dest` [B,N]; -1 stays. There may be no token at all."""
    # One more place, for the cells of none.
    return F.pad(dest, (0, 1), value=-1).gather(1, torch.where(source < 0, dest.shape[1], source))
