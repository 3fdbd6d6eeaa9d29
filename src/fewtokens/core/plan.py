"""`Plan`: the decision of a method as data. Axis letters are defined in `tokens.py`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from fewtokens.core.tokens import Tokens

Dropped = Literal["lost", "held"]

# Below this number of entries (1 MiB in float32) preparing an embedding bag takes longer than it saves.
_SMALL = 1 << 18
# The precision of positions that are compared, in parts of a cell.
POSITION_UNITS = 1024


@dataclass(frozen=True, eq=False)
class Plan:
    """The output index of each of N input tokens, as data that can be printed, saved and composed.

    A plan is either hard (`dest`) or soft (`weights`). `Tokens.apply` carries it out; `Plan.move` applies it to any
    other tensor with one row per token, such as keys, DeepStack features or position ids.

        plan = Plan.top(scores, count, tokens)
        fewer = tokens.apply(plan)
        keys = plan.move(keys)

    Args:
        count: int64 [B], number of output tokens of each video.
        num_slots: M, number of output slots, at least `count.max()`. Stored so that a plan can be carried out without
            reading `count`.
        dest: int64 [B,N], output index of each token; -1 if it is dropped.
        representative: int64 [B,M], the token that output m copies; other tokens with the same output only add to its
            size. If None, output m is the mean of its tokens, weighted by size.
        weights: float [B,M,N], for a soft plan: output m is sum_n weights[m,n] * token[n]. Or float [B,G,m,n], for G
            blocks of n consecutive tokens, each reduced to m outputs: output g*m + i is the sum of weights[g,i,j] *
            token[g*n + j] over j. M is G*m, and the last block may have fewer tokens. `Tokens.apply` requires one
            token per cell and blocks of whole frames.
        shares: float [B,N], for a hard plan: output m is the sum of shares[n] * token[n] over its tokens, instead of
            their mean.
        sizes: float [B,N], for a hard plan: sizes used instead of those of the tokens.
        dropped: the meaning of a dropped token for `Tokens.unmerge`: "lost", or "held" if the previous token at the
            same position remains valid because nothing changed.

    Raises:
        ValueError: neither or both of `dest` and `weights` are given, other fields do not fit them, or, on a CPU, a
            value of `dest` is not below `num_slots`. On other devices `dest` is not read, which would synchronize them.
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
            raise ValueError("a plan must have either dest (hard) or weights (soft)")
        hard = (self.representative, self.shares, self.sizes)
        if self.weights is not None and any(value is not None for value in hard):
            raise ValueError("a soft plan must not have representative, shares or sizes")
        if self.weights is not None and self.weights.ndim == 4:
            G, m, _ = self.weights.shape[1:]
            if G * m != self.num_slots:
                raise ValueError(f"num_slots must be {G * m}, {m} for each of {G} blocks, got {self.num_slots}")
        if self.representative is not None and self.shares is not None:
            raise ValueError("a plan must not have both representative and shares")
        for name, value in (("shares", self.shares), ("sizes", self.sizes)):
            if value is not None and self.dest is not None and value.shape != self.dest.shape:
                raise ValueError(f"{name} must be {list(self.dest.shape)} like dest, got {list(value.shape)}")
        if self.dest is not None:
            _check_below("dest", self.dest, "num_slots", self.num_slots)

    @staticmethod
    def identity(tokens: Tokens) -> Plan:
        """Returns the plan that keeps all tokens in their slots."""
        index = torch.arange(tokens.N, device=tokens.device).expand(tokens.B, -1)
        return Plan(tokens.count, tokens.N, index.masked_fill(~tokens.mask, -1), index)

    @staticmethod
    def keep(kept: Tensor, num_slots: int | None = None, dropped: Dropped = "lost") -> Plan:
        """Keeps the tokens selected by a mask, in their order, and drops the others.

        Args:
            kept: bool [B,N], True for the tokens to keep.
            num_slots: M, at least the largest count. Default: the largest count, which reads the mask.
            dropped: the meaning of a dropped token, see `Plan`.
        """
        count = kept.sum(1)
        num_slots = int(count.max()) if num_slots is None else num_slots
        slot = kept.cumsum(1) - 1
        dest = slot.masked_fill(~kept, -1)
        # One extra slot for dropped tokens (and for those that do not fit, which the constructor reports).
        slot = slot.masked_fill(~kept, num_slots).clamp(max=num_slots)
        token = torch.arange(kept.shape[1], device=kept.device).expand_as(slot)
        representative = slot.new_zeros(len(kept), num_slots + 1).scatter_(1, slot, token)[:, :num_slots]
        return Plan(count, num_slots, dest, representative, dropped=dropped)

    @staticmethod
    def top(
        scores: Tensor, count: Tensor, tokens: Tokens, *, num_slots: int | None = None, dropped: Dropped = "lost"
    ) -> Plan:
        """Keeps the tokens with the highest scores, in their order; ties go to the first.

        Args:
            scores: [B,N], score of each token.
            count: int64 [B], number of tokens to keep, at most the number of real tokens.
            tokens: the N tokens to select from.
            num_slots: M, at least the largest count, such as `Method.max_slots`. Default: the largest count, which
                reads the mask and so synchronizes a GPU.
            dropped: the meaning of a dropped token, see `Plan`.
        """
        count = torch.minimum(count.to(tokens.device), tokens.count)
        return Plan.keep(top_mask(scores.float(), count, tokens.mask), num_slots, dropped)

    @staticmethod
    def group(labels: Tensor, tokens: Tokens, groups: int | None = None, *, num_slots: int | None = None) -> Plan:
        """Merges tokens with equal labels. The features of a merged token are the mean weighted by `sizes`.

        Output tokens are sorted by mean time, then row, then column.

        Args:
            labels: int64 [B,N], values in 0..groups-1; -1 drops a token. Not all values need to occur: unused labels
                leave no gap. Labels of padded slots are ignored.
            tokens: the N tokens to merge.
            groups: exclusive upper bound of the labels. Memory is proportional to it. Default: the largest label plus
                1, which reads `labels` and so synchronizes a GPU.
            num_slots: M, at least the largest number of distinct labels per video. Default: that number, read from
                `labels`.

        Raises:
            ValueError: on a CPU, a label is not below `groups`, or a video has more distinct labels than `num_slots`.
        """
        groups = int(labels.max()) + 1 if groups is None else groups
        labels = labels.masked_fill(~tokens.mask, -1)
        _check_below("labels", labels, "groups", groups)
        sizes = group_sum(tokens.sizes[..., None], labels, groups)  # [B,groups,1]
        used = group_count(labels, groups) > 0
        positions = group_sum(tokens.sizes[..., None] * tokens.positions, labels, groups) / sizes.clamp(min=1e-12)
        order = position_order(positions, used)  # [B,groups]: rank -> label
        rank = order.argsort(dim=1)
        dest = rank.gather(1, labels.clamp(min=0)).masked_fill(labels < 0, -1)
        count = used.sum(1)
        return Plan(count, int(count.max()) if num_slots is None else num_slots, dest)

    @staticmethod
    def from_assignment(before: Tokens, after: Tokens) -> Plan:
        """Returns the hard plan that leads from tokens to tokens reduced from them.

        The assignments determine it, since all cells of a token move together. A token of `before` without a cell, as
        resampling may give, counts as dropped; compose the plans with `then` to include it.

        Args:
            before: the tokens before reduction.
            after: the tokens after it, by any number of methods.
        """
        slot = before.assignment.masked_fill(before.assignment < 0, before.N)
        dest = before.assignment.new_full((before.B, before.N + 1), -1).scatter(1, slot, after.assignment)
        return Plan(after.count, after.N, dest[:, : before.N], dropped=after.dropped)

    def then(self, later: Plan) -> Plan:
        """Composes this plan with a later one; both must be hard. Means are computed in one step.

        Raises:
            ValueError: a plan is soft, or has shares or sizes, or one averages groups and the other copies one token of
                each.
        """
        if self.dest is None or later.dest is None:
            raise ValueError("soft plans cannot be composed; apply them in sequence")
        if any(value is not None for plan in (self, later) for value in (plan.shares, plan.sizes)):
            raise ValueError("plans with shares or sizes cannot be composed; apply them in sequence")
        dest = compose_assignment(later.dest, self.dest)
        representative = None
        if self.representative is not None and later.representative is not None:
            representative = self.representative.gather(1, later.representative)
        elif any(plan._copies_groups() for plan in (self, later)):
            raise ValueError(
                "a plan of means and one that copies a token of each group cannot be composed; apply them in sequence"
            )
        dropped: Dropped = "held" if "held" in (self.dropped, later.dropped) else "lost"
        return Plan(later.count, later.num_slots, dest, representative, dropped=dropped)

    def sort_by_position(self, tokens: Tokens) -> Plan:
        """Returns this hard plan with its outputs sorted by mean time, then row, then column."""
        assert self.dest is not None
        sizes = tokens.sizes if self.sizes is None else self.sizes
        order = position_order(self.move(tokens.positions, sizes), self.mask)
        copies = None if self.representative is None else self.representative.gather(1, order)
        return replace(self, dest=compose_assignment(order.argsort(dim=1), self.dest), representative=copies)

    def _copies_groups(self) -> bool:
        """Whether it replaces groups by one of their tokens; False where that cannot be read at no cost."""
        if self.representative is None or self.dest is None or not readable(self.dest):
            return False
        return bool(((self.dest >= 0).sum(1) > self.count).any())

    @property
    def shape(self) -> tuple[int, int]:
        """(B, N): the numbers of videos and input tokens. With weights in blocks, N is that of G full blocks."""
        if self.dest is not None:
            return self.dest.shape[0], self.dest.shape[1]
        B, G, _, n = self.block_weights.shape
        return B, G * n

    @property
    def block_weights(self) -> Tensor:
        """The weights of a soft plan as [B,G,m,n]; G is 1 if they are not in blocks."""
        assert self.weights is not None
        return self.weights if self.weights.ndim == 4 else self.weights[:, None]

    @property
    def mask(self) -> Tensor:
        """Whether each output slot has a token, bool [B,M]."""
        return torch.arange(self.num_slots, device=self.count.device) < self.count[:, None]

    def move(self, values: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Applies the plan to a tensor with one row per token; empty slots are zero. Differentiable.

        Args:
            values: [B,N,D].
            sizes: [B,N], weights of the tokens in a mean. None for equal weights.

        Returns:
            [B,M,D] in the dtype of `values`. Sums are accumulated in float32 (in float64 for float64 input).
        """
        wide = values.dtype if values.dtype == torch.float64 else torch.float32
        if self.weights is not None:
            blocks = split_blocks(values.to(wide), self.block_weights.shape[3])
            with torch.autocast(values.device.type, enabled=False):
                return (self.block_weights.to(wide) @ blocks).flatten(1, 2).to(values.dtype)
        assert self.dest is not None
        if self.representative is not None:
            return self.copy(values)
        share, _ = self.parts(torch.ones_like(self.dest, dtype=wide) if sizes is None else sizes.to(wide))
        return self.sum(values, share)

    def copy(self, values: Tensor) -> Tensor:
        """Returns the rows of `values` [B,N,D] at the representatives, [B,M,D]; empty slots are zero."""
        assert self.representative is not None
        moved = take_rows(values, self.representative)
        mask = self.mask.to(values.device)
        # Without empty slots there is nothing to clear, but reading that on a GPU would synchronize it.
        if readable(mask) and bool(mask.all()):
            return moved
        return moved.masked_fill(~mask[..., None], 0)

    def parts(self, sizes: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns each token's weight in the mean of its group [B,N] and the group sizes [B,M]; hard plans only.

        The weight of a dropped token has no meaning, but is finite. `rows` are those of this plan, if already computed.
        """
        B, row = sizes.shape[0], self.rows if rows is None else rows
        total = _sum_rows(sizes.reshape(-1), row, B * self.num_slots)
        own_total = total.index_select(0, row).reshape(sizes.shape)
        floor = torch.finfo(sizes.dtype).tiny
        return sizes / own_total.clamp_(min=floor), total[:-1].reshape(B, self.num_slots)

    def sum(self, values: Tensor, share: Tensor, rows: Tensor | None = None) -> Tensor:
        """Sums share [B,N] * values [B,N,D] by group, [B,M,D]; a token alone in its group is copied bit for bit."""
        rows = self.rows if rows is None else rows
        return weighted_row_sum(values.to(share.dtype), share, rows, self.num_slots).to(values.dtype)

    @property
    def rows(self) -> Tensor:
        """The output row of each token in the whole batch, see `flat_rows`; hard plans only."""
        assert self.dest is not None
        return flat_rows(self.dest, self.num_slots)

    def __repr__(self) -> str:
        B, N = self.shape
        rule = "soft" if self.weights is not None else "copies" if self.representative is not None else "means"
        if self.shares is not None:
            rule = "sums by shares"
        dropped = ", dropped='held'" if self.dropped == "held" else ""
        return f"Plan(B={B}, N={N} -> M={self.num_slots}, {rule}{dropped})"


def _check_below(name: str, values: Tensor, limit_name: str, limit: int) -> None:
    """Checks that integers are below a limit; only those on a CPU, since reading others synchronizes their device.

    Raises:
        ValueError: a value is too large.
    """
    if readable(values) and values.numel() and (largest := int(values.max())) >= limit:
        raise ValueError(f"{name} has values up to {largest}, but {limit_name} is {limit}")


def readable(values: Tensor) -> bool:
    """Returns whether values can be read at no cost: on a CPU, and not while a graph is traced."""
    return type(values) is Tensor and values.device.type == "cpu" and not torch.compiler.is_compiling()


def split_blocks(values: Tensor, size: int) -> Tensor:
    """Divides rows into blocks: [B,N,...] -> [B,G,size,...]; the last block is padded with zeros."""
    B, N = values.shape[:2]
    if size == N:
        return values[:, None]
    if spare := -N % size:
        values = torch.cat([values, values.new_zeros(B, spare, *values.shape[2:])], 1)
    return values.unflatten(1, (-1, size))


def take_rows(values: Tensor, index: Tensor) -> Tensor:
    """Takes rows by index: [B,N,...] and int64 [B,M] -> [B,M,...]. Differentiable.

    All rows of a batch are moved by one `index_select`, which copies whole rows; `gather` with an expanded index reads
    an index per channel and takes four times as long.
    """
    B, N = values.shape[:2]
    if B == 1 and not torch.compiler.is_compiling():  # an exported network accepts any batch size
        return values[0].index_select(0, index[0])[None]
    rows = index + N * torch.arange(B, device=index.device)[:, None]
    return values.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, index.shape)


def mask_indices(selected: Tensor) -> Tensor:
    """The indices of the True entries of a mask [B,N], in order, int64 [B,n]; n is the largest number of them.

    A row with fewer continues with other indices. A traced graph cannot read n, which is N there.
    """
    most = selected.shape[1] if torch.compiler.is_compiling() else int(selected.sum(1).max())
    return selected.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]


def top_mask(scores: Tensor, count: Tensor, mask: Tensor) -> Tensor:
    """Marks the tokens with the highest scores, bool [B,N]; ties go to the first. NaN is the highest score.

    Args:
        scores: float [B,N].
        count: int64 [B], number of tokens to mark, at most the number of real tokens.
        mask: bool [B,N], True for real tokens, which come first.
    """
    if not scores.shape[1]:
        return mask
    scores = scores.masked_fill(scores.isnan(), torch.inf).masked_fill(~mask, -torch.inf)
    # The values alone are sorted: one sort, where ranks would take two.
    ordered = scores.sort(dim=1, descending=True).values
    threshold = ordered.gather(1, (count[:, None] - 1).clamp(min=0))
    above = scores > threshold
    ties = (scores == threshold) & mask
    spare = count[:, None] - above.sum(1, keepdim=True)
    return above | (ties & (ties.cumsum(1) <= spare))


def group_sum(values: Tensor, dest: Tensor, num_slots: int) -> Tensor:
    """Sums rows by destination: [B,N,D] -> [B,num_slots,D]. Rows with destination -1 are skipped."""
    B, N, D = values.shape
    sums = _sum_rows(values.reshape(B * N, D), flat_rows(dest, num_slots), B * num_slots)
    return sums[:-1].reshape(B, num_slots, D)


def group_count(labels: Tensor, groups: int) -> Tensor:
    """The number of each label 0..groups-1 in labels [B,N], int64 [B,groups]; -1 is skipped."""
    label = labels.masked_fill(labels < 0, groups)
    return label.new_zeros(len(label), groups + 1).scatter_add_(1, label, torch.ones_like(label))[:, :groups]


def weighted_group_sum(values: Tensor, weight: Tensor, dest: Tensor, num_slots: int) -> Tensor:
    """Sums weight [B,N] * values [B,N,D] by destination: [B,num_slots,D]. Rows with destination -1 are skipped."""
    return weighted_row_sum(values, weight, flat_rows(dest, num_slots), num_slots)


def flat_rows(dest: Tensor, num_slots: int) -> Tensor:
    """The output row of each token among those of the whole batch, int64 [B*N]; B*num_slots if it is dropped."""
    B = dest.shape[0]
    rows = dest
    if torch.compiler.is_compiling() or B != 1:  # an exported network accepts any batch size
        rows = dest + num_slots * torch.arange(B, device=dest.device)[:, None]
    return rows.masked_fill(dest < 0, B * num_slots).flatten()


def _sum_rows(values: Tensor, row: Tensor, num_rows: int) -> Tensor:
    """Sums values [B*N,...] by row; an extra row at the end, [num_rows+1,...], is for dropped tokens."""
    return values.new_zeros(num_rows + 1, *values.shape[1:]).index_add_(0, row, values)


def weighted_row_sum(values: Tensor, weight: Tensor, row: Tensor, num_slots: int) -> Tensor:
    """`weighted_group_sum` by the rows of `flat_rows`."""
    B, N, D = values.shape
    bags = B * num_slots
    differentiable = torch.is_grad_enabled() and (values.requires_grad or weight.requires_grad)
    if differentiable or values.dtype != torch.float32 or not readable(values) or values.numel() < _SMALL:
        return _sum_rows((weight[..., None] * values).reshape(B * N, D), row, bags)[:-1].reshape(B, num_slots, D)
    # On a CPU an embedding bag reads each row once, where the products would be written and read again.
    size = torch.bincount(row, minlength=bags + 1)[:bags]
    order = row.argsort(stable=True)[: int(size.sum())]
    starts = F.pad(size.cumsum(0), (1, 0))[:-1]
    sums = F.embedding_bag(
        order, values.reshape(B * N, D), starts, mode="sum", per_sample_weights=weight.flatten()[order].float()
    )
    return sums.reshape(B, num_slots, D)


def position_order(positions: Tensor, real: Tensor) -> Tensor:
    """Returns the indices that sort positions [B,N,3] by (t, y, x), padding last, int64 [B,N]."""
    if not positions.shape[1]:
        return torch.zeros_like(real, dtype=torch.int64)
    key = position_keys(positions)
    return key.masked_fill(~real, torch.iinfo(torch.int64).max).argsort(dim=1, stable=True)


def position_keys(positions: Tensor) -> Tensor:
    """Integers that order rounded positions [B,N,3] by (t, y, x), equal only for equal positions, int64 [B,N]."""
    t, y, x = round_positions(positions).unbind(2)
    rows, columns = (axis.amax((0, 1)).clamp(min=0) + 1 for axis in (y, x))
    return (t * rows + y) * columns + x


def round_positions(positions: Tensor) -> Tensor:
    """Rounds positions, because the last digits of a mean depend on the order of summation.

    Returns:
        int64, in units of 1/`POSITION_UNITS` of a cell.
    """
    return (positions.double() * POSITION_UNITS).round().long()


def compose_assignment(dest: Tensor, assignment: Tensor) -> Tensor:
    """Maps an assignment [B,S] through `dest` [B,N], so that each cell follows its token; -1 stays -1. N may be 0."""
    if not dest.shape[1]:
        return torch.full_like(assignment, -1)
    return dest.gather(1, assignment.clamp(min=0)).masked_fill(assignment < 0, -1)
