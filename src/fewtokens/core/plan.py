"""What a method decides: where each token goes. Axis letters are explained in `tokens.py`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from fewtokens.core.tokens import Tokens

Dropped = Literal["lost", "held"]


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
        shares: float [B,N] or None, of a hard plan: output m is the sum of shares[n] * token[n] over the tokens sent
            there, in place of the mean by size.
        sizes: float [B,N] or None: what each token counts, in place of its own size.
        dropped: what it means to drop a token: "lost", or "held" where nothing changed, so that the last token at the
            same place still holds. `Tokens` remember it for `unmerge`.
    """

    count: Tensor
    num_slots: int
    dest: Tensor | None = None
    representative: Tensor | None = None
    weights: Tensor | None = None
    shares: Tensor | None = None
    sizes: Tensor | None = None
    dropped: Dropped = "lost"

    def __post_init__(self) -> None:
        if (self.dest is None) == (self.weights is None):
            raise ValueError("a plan is either hard (dest) or soft (weights)")
        hard = (self.representative, self.shares, self.sizes)
        if self.weights is not None and any(value is not None for value in hard):
            raise ValueError("representative, shares and sizes belong to a hard plan")
        if self.representative is not None and self.shares is not None:
            raise ValueError("a plan copies representatives or sums by shares, not both")
        for name, value in (("shares", self.shares), ("sizes", self.sizes)):
            if value is not None and self.dest is not None and value.shape != self.dest.shape:
                raise ValueError(f"{name} must be {list(self.dest.shape)} as dest, got {list(value.shape)}")

    @staticmethod
    def identity(tokens: Tokens) -> Plan:
        """Everything stays where it is."""
        index = torch.arange(tokens.N, device=tokens.device).expand(tokens.B, -1)
        return Plan(tokens.count, tokens.N, index.masked_fill(~tokens.mask, -1), index)

    @staticmethod
    def keep(kept: Tensor, num_slots: int | None = None, dropped: Dropped = "lost") -> Plan:
        """Keeps the tokens marked True in `kept` [B,N], in their order, and drops the others.

        Args:
            kept: bool [B,N].
            num_slots: at least the largest count, where it is known without a look at the data.
            dropped: what dropping means.
        """
        count = kept.sum(1)
        num_slots = int(count.max()) if num_slots is None else num_slots
        dest = (kept.cumsum(1) - 1).masked_fill(~kept, -1)
        representative = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, :num_slots]
        return Plan(count, num_slots, dest, representative, dropped=dropped)

    @staticmethod
    def top(
        scores: Tensor, count: Tensor, tokens: Tokens, *, num_slots: int | None = None, dropped: Dropped = "lost"
    ) -> Plan:
        """Keeps the `count` [B] real tokens with the highest `scores` [B,N], in their order; ties go to the first.

        Args:
            scores: [B,N].
            count: [B].
            tokens: that are chosen from.
            num_slots, dropped: as in `keep`.
        """
        count = torch.minimum(count.to(tokens.device), tokens.count)
        scores = scores.float().masked_fill(~tokens.mask, -torch.inf)
        rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return Plan.keep((rank < count[:, None]) & tokens.mask, num_slots, dropped)

    @staticmethod
    def group(labels: Tensor, tokens: Tokens, groups: int | None = None, *, num_slots: int | None = None) -> Plan:
        """Merges the tokens with equal `labels` int64 [B,N] (0..groups-1, any order; -1 drops a token).

        Groups come out in the order of their mean time, then row, then column; numbers that no token
        carries leave no gap.

        Args:
            labels: int64 [B,N].
            tokens: that are merged.
            groups: an upper bound of the labels, where it is known without a look at the data.
            num_slots: at least the largest number of labels in use of one video, likewise.
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
        return Plan(count, int(count.max()) if num_slots is None else num_slots, dest)

    @staticmethod
    def from_assignment(before: Tokens, after: Tokens) -> Plan:
        """The hard plan that leads from one set of tokens to a later one made from it.

        Known from the assignments alone, since all the cells of a token travel together.
        """
        slot = before.assignment.masked_fill(before.assignment < 0, before.N)
        dest = before.assignment.new_full((before.B, before.N + 1), -1).scatter(1, slot, after.assignment)
        return Plan(after.count, after.N, dest[:, : before.N], dropped=after.dropped)

    def then(self, later: Plan) -> Plan:
        """This plan and a later one in one step. Both must be hard; means are taken in one step too.

        Raises:
            ValueError: a soft plan, or one that does not move by sizes alone.
        """
        if self.dest is None or later.dest is None:
            raise ValueError("only hard plans compose; apply soft plans one after the other")
        if any(value is not None for plan in (self, later) for value in (plan.shares, plan.sizes)):
            raise ValueError("plans with shares or sizes of their own do not compose; apply one after the other")
        dest = follow(later.dest, self.dest)
        representative = None
        if self.representative is not None and later.representative is not None:
            representative = self.representative.gather(1, later.representative)
        dropped: Dropped = "held" if "held" in (self.dropped, later.dropped) else "lost"
        return Plan(later.count, later.num_slots, dest, representative, dropped=dropped)

    def ordered(self, tokens: Tokens) -> Plan:
        """The same hard plan with its outputs sorted by mean time, then row, then column."""
        assert self.dest is not None
        sizes = tokens.sizes if self.sizes is None else self.sizes
        order = by_position(self.move(tokens.positions, sizes), self.mask)
        copies = None if self.representative is None else self.representative.gather(1, order)
        return replace(self, dest=follow(order.argsort(dim=1), self.dest), representative=copies)

    @property
    def shape(self) -> tuple[int, int]:
        """B videos and N tokens that go in."""
        moved = self.dest if self.weights is None else self.weights
        assert moved is not None
        return moved.shape[0], moved.shape[-1]

    @property
    def mask(self) -> Tensor:
        """Which slots are filled, bool [B,M]."""
        return torch.arange(self.num_slots, device=self.count.device) < self.count[:, None]

    def move(self, values: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Carries `values` [B,N,D] to [B,M,D] as decided; slots that stay empty are zero.

        Args:
            values: any tensor with a row for each token. Means are summed in float32 (float64 stays) and
                returned in the dtype of `values`. Differentiable.
            sizes: [B,N] weights of the tokens in a mean; None weighs them equally.
        """
        wide = values.dtype if values.dtype == torch.float64 else torch.float32
        if self.weights is not None:
            return (self.weights.to(wide) @ values.to(wide)).to(values.dtype)
        assert self.dest is not None
        if self.representative is not None:
            return self.copy(values)
        share, _ = self.parts(torch.ones_like(self.dest, dtype=wide) if sizes is None else sizes.to(wide))
        return self.sum(values, share)

    def copy(self, values: Tensor) -> Tensor:
        """The rows of the representatives of `values` [B,N,D], [B,M,D]; slots that stay empty are zero."""
        assert self.representative is not None
        moved = values.gather(1, self.representative[..., None].expand(-1, -1, values.shape[2]))
        return moved.masked_fill(~self.mask.to(values.device)[..., None], 0)

    def parts(self, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Of a hard plan: the part of each token in its group's mean [B,N], and the groups' sizes [B,M]."""
        assert self.dest is not None
        total = sums(sizes[..., None], self.dest, self.num_slots).squeeze(2)
        floor = torch.finfo(sizes.dtype).tiny
        # One more group, for the dropped ones: there may be no other.
        own = F.pad(total, (0, 1), value=1.0).gather(1, self.dest.masked_fill(self.dest < 0, self.num_slots))
        return sizes / own.clamp(min=floor), total

    def sum(self, values: Tensor, share: Tensor) -> Tensor:
        """Sums of share * values by group, [B,M,D]: a token alone in its group has share 1 and stays bit-equal."""
        assert self.dest is not None
        return sums(share[..., None] * values.to(share.dtype), self.dest, self.num_slots).to(values.dtype)

    def __repr__(self) -> str:
        B, N = self.shape
        how = "soft" if self.weights is not None else "copies" if self.representative is not None else "means"
        if self.shares is not None:
            how = "sums by shares"
        held = ", dropped='held'" if self.dropped == "held" else ""
        return f"Plan(B={B}, N={N} -> M={self.num_slots}, {how}{held})"


def sums(values: Tensor, dest: Tensor, num_slots: int) -> Tensor:
    """Sums rows by destination: [B,N,D] -> [B,num_slots,D]; destination -1 is left out."""
    B, _, D = values.shape
    slots = num_slots + 1
    rows = torch.arange(B, device=values.device)[:, None] * slots + dest.masked_fill(dest < 0, num_slots)
    out = values.new_zeros(B * slots, D)
    out.index_add_(0, rows.flatten(), values.reshape(-1, D))
    return out.reshape(B, slots, D)[:, :num_slots]


def by_position(positions: Tensor, real: Tensor) -> Tensor:
    """Sorts by (t, y, x), padding last: the order as indices, int64 [B,N].

    To 1/1024 of a cell, so that the last digit of a mean, which depends on the order of summing, does not decide.
    """
    positions = (positions * 1024).round()
    order = torch.arange(positions.shape[1], device=positions.device).expand(positions.shape[0], -1)
    for key in (positions[..., 2], positions[..., 1], positions[..., 0], (~real).float()):
        order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
    return order


def follow(dest: Tensor, assignment: Tensor) -> Tensor:
    """Where each cell goes when its token goes to `dest` [B,N]; -1 stays. There may be no token at all."""
    # One more place, for the cells of none.
    return F.pad(dest, (0, 1), value=-1).gather(1, torch.where(assignment < 0, dest.shape[1], assignment))
