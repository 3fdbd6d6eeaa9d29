"""Bipartite soft matching, the step shared by all methods that merge tokens pairwise.

Token Merging (ToMe), arXiv 2210.09461, section 3. Written from the published algorithm.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.plan import (
    Plan,
    compose_assignment,
    mask_indices,
    position_keys,
    position_order,
    readable,
    take_rows,
)
from fewtokens.core.tokens import Tokens

# Similarities are computed in blocks of at most this many entries (32 MiB in float32): products of smaller ones are
# slower. The full matrix is never in memory.
_MAX_BLOCK_ENTRIES = 1 << 23
# Of at least this many tokens, and this many for each pair, the best pairs are found by sketches with this many axes.
_MANY, _MANY_PER_PAIR, _AXES = 1024, 8, 64
# Rounding errors of a bound by sketches.
SKETCH_ERROR = 1e-5


@torch.no_grad()
def best_match(a: Tensor, b: Tensor, real: Tensor | None = None, barred: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Finds the most similar row of `b` for every row of `a`.

    Args:
        a: [B,Na,D]. The inner product with rows of `b` is the similarity.
        b: [B,Nb,D].
        real: bool [B,Nb], which rows of `b` may be matched; None for all.
        barred: int64 [B,Na], one row of `b` for each of `a` that must not be its match; None for none.

    Returns:
        The similarity [B,Na] and the index of the row, int64 [B,Na]; ties go to the first row.
    """
    if torch.compiler.is_compiling():  # an exported network accepts any batch size
        return _highest(a @ b.transpose(1, 2), real, barred)
    (B, Na, _), Nb = a.shape, b.shape[1]
    block = max(1, _MAX_BLOCK_ENTRIES // max(1, B * Nb))
    if block >= Na:
        return _highest(torch.bmm(a, b.transpose(1, 2)), real, barred)
    best = a.new_empty(B, Na)
    index = torch.empty(B, Na, dtype=torch.int64, device=a.device)
    # One buffer serves all blocks: the system would clear new memory for each.
    buffer = a.new_empty(B, block, Nb)
    for start in range(0, Na, block):
        rows = a[:, start : start + block]
        table = torch.bmm(rows, b.transpose(1, 2), out=buffer[:, : rows.shape[1]])
        others = None if barred is None else barred[:, start : start + block]
        best[:, start : start + block], index[:, start : start + block] = _highest(table, real, others)
    return best, index


def _highest(table: Tensor, real: Tensor | None, barred: Tensor | None) -> tuple[Tensor, Tensor]:
    """The highest entry of each row of a table [B,Na,Nb] and its column; masks as in `best_match`."""
    if real is not None:
        table.masked_fill_(~real[:, None], -torch.inf)
    if barred is not None:
        table.scatter_(2, barred[..., None], -torch.inf)
    value, match = table.max(dim=2)
    return value, match


@torch.no_grad()
def top_matches(a: Tensor, b: Tensor, real_a: Tensor, real_b: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """`best_match` for the `count` [B] rows with the most similar matches, without the full product.

    Args:
        a: [B,Na,D], of length 1.
        b: [B,Nb,D], of length 1.
        real_a, real_b: bool [B,Na] and [B,Nb], which rows may be matched.
        count: int64 [B], at most the number of rows of either that may be matched.

    Returns:
        As `best_match`; other rows may have a similarity of -2 and the index 0.
    """
    axes = sketch_axes(a)
    bound, near = best_match(sketch(a, axes), sketch(b, axes), real_b)
    # Enough pairs are at least this similar; only rows that may reach it are compared with all of `b`.
    similar = (a * take_rows(b, near)).sum(2).masked_fill(~real_a, -torch.inf)
    lowest = similar.sort(dim=1, descending=True).values.gather(1, (count[:, None] - 1).clamp(min=0))
    rows = mask_indices(~(bound < lowest - SKETCH_ERROR) & real_a)
    value, index = best_match(take_rows(a, rows), b, real_b)
    match = torch.zeros_like(bound, dtype=torch.int64)
    return torch.full_like(bound, -2).scatter(1, rows, value), match.scatter(1, rows, index)


def sketch_axes(x: Tensor) -> Tensor:
    """Orthonormal directions in the span of some rows of x [B,N,D], [B,D,P]."""
    rows = torch.linspace(0, x.shape[1] - 1, min(_AXES, x.shape[1]), device=x.device).long()
    return torch.linalg.qr(take_rows(x, rows.expand(len(x), -1)).transpose(1, 2)).Q


def sketch(x: Tensor, axes: Tensor) -> Tensor:
    """Vectors [B,N,D] of length 1 along orthonormal axes [B,D,P], and the length of the rest, [B,N,P+1].

    The inner product of two sketches is an upper bound of that of the vectors, up to `SKETCH_ERROR`.
    """
    part = x @ axes
    # Rounded up: of a small rest few digits are left.
    rest = (1 - part.square().sum(2, keepdim=True)).clamp(min=0) + 4e-6
    return torch.cat([part, rest.sqrt()], 2)


def bipartite_plan(
    metric: Tensor, r: int | Tensor, tokens: Tokens, num_slots: int | None = None, *, unordered: bool = False
) -> Plan:
    """Merges up to `r` tokens, each into its most similar token of the other half.

    Tokens at even positions (set A) each select their most similar token at an odd position (set B); the `r` best pairs
    are merged. Prefix tokens count as positions, like the class token in the paper, and never merge. The result is the
    rest of A, then all of B. A keeps its order if there is a prefix, and is ordered by decreasing similarity otherwise
    (as in the paper; the mixing gives new pairs in the next step). If r is 0, nothing moves.

    Args:
        metric: [B,N,D] vectors whose cosine is the similarity, computed in float32.
        r: number of tokens to remove, an int or one per video; at most half of them are removed.
        tokens: the tokens to merge.
        num_slots: an upper bound of the remaining tokens, if known without reading the data.
        unordered: whether the order of the result does not matter, so that only the best pairs need to be known.
    """
    B, N = tokens.mask.shape
    metric = F.normalize(metric.float(), dim=2)
    first = tokens.num_prefix % 2
    a, b = metric[:, first::2], metric[:, 1 - first :: 2]
    if a.shape[1] == 0 or b.shape[1] == 0:
        return Plan.identity(tokens)
    # If every slot is real, there is nothing to mask. On a GPU the check would synchronize, and a compiled network
    # cannot branch on data.
    dense = not metric.is_cuda and not torch.compiler.is_compiling() and bool(tokens.mask.all())
    if unordered and isinstance(r, Tensor) and int(r.max()) <= N // _MANY_PER_PAIR:
        best, match = top_matches(a, b, tokens.mask[:, first::2], tokens.mask[:, 1 - first :: 2], r)
    else:
        best, match = best_match(a, b, None if dense else tokens.mask[:, 1 - first :: 2])
    # How many tokens of each video merge, and how many set A has: ints if all videos are equal, otherwise [B,1].
    merged: int | Tensor
    num_a: int | Tensor
    if dense and isinstance(r, int):
        merged, num_a = min(r, N // 2), a.shape[1]
        left = torch.full((B,), N - merged, device=metric.device)
    else:
        count, real_a = tokens.count, tokens.mask[:, first::2]
        best = best.masked_fill(~real_a, -torch.inf)
        merged = torch.as_tensor(r, device=metric.device).minimum(count // 2)[:, None]
        left, num_a = count - merged[:, 0], real_a.sum(1, keepdim=True)
    if num_slots is None:
        # The longest video has no padding, so the number of slots is known without reading the data.
        num_slots = N - min(r, N // 2) if isinstance(r, int) else int(left.max())
    index = torch.arange(N, device=metric.device)
    if isinstance(merged, int) and merged == 0:
        return Plan(left, num_slots, index.expand(B, -1))
    order = best.argsort(dim=1, descending=True, stable=True)
    if isinstance(merged, int) and tokens.num_prefix:
        survives = torch.ones_like(best, dtype=torch.bool).scatter_(1, order[:, :merged], False)
        slot_a = survives.cumsum(1).sub_(1)
    else:
        rank = torch.empty_like(order).scatter_(1, order, index[: a.shape[1]].expand_as(order))
        survives = rank >= merged
        slot_a = (survives & real_a).cumsum(1).sub_(1) if tokens.num_prefix else rank - merged
    start_b = num_a - merged
    dest = torch.empty(B, N, dtype=torch.int64, device=metric.device)
    dest[:, first::2] = torch.where(survives, slot_a, match + start_b)
    dest[:, 1 - first :: 2] = index[: b.shape[1]] + start_b
    if isinstance(merged, Tensor):
        # A video with nothing to merge keeps its order, regardless of the others in the batch.
        dest = torch.where(merged > 0, dest, index).masked_fill(~tokens.mask, -1)
    return Plan(left, num_slots, dest)


def merge_to(tokens: Tokens, target: Tensor, planned: Sequence[int] | None = None) -> Plan:
    """Merges the most similar pairs, step by step, until no video has more than its `target` [B] tokens.

    The result is ordered by mean time, row and column.

    Args:
        tokens: [B,N,C].
        target: int64 [B].
        planned: the same counts, known without reading the data (or larger, if a video has fewer tokens). Required for
            tracing a graph, which runs the number of steps that the smallest one needs.
    """
    # Means of one step are matched in the next, so they stay in float32 in between.
    half = tokens.features.dtype in (torch.float16, torch.bfloat16)
    merged = tokens.to(torch.float32) if half else tokens.replace(features=tokens.features.detach())
    merged = merged.replace(prefix=None)  # which would change the halves; encoders give it a meaning, batches drop it
    total = Plan.identity(tokens)
    if planned is not None and torch.compiler.is_compiling():
        bound, slots = tokens.N, tokens.N
        while bound > min(planned):
            bound = -(-bound // 2)
            slots = max(min(max(planned), slots), -(-slots // 2))
            plan = bipartite_plan(merged.features, _excess(merged, target), merged, slots)
            merged, total = merged.apply(plan), total.then(plan)
        return _plan_in_order(total, merged)
    while bool((merged.count > target).any()):
        excess = _excess(merged, target)
        last = bool((excess <= merged.count // 2).all())
        unordered = last and merged.N >= _MANY and readable(excess) and _distinct(merged)
        plan = bipartite_plan(merged.features, excess, merged, unordered=unordered)
        if last:
            merged = merged.replace(features=merged.features[..., :0])  # not matched again
        merged, total = merged.apply(plan), total.then(plan)
    return _plan_in_order(total, merged)


def _plan_in_order(total: Plan, after: Tokens) -> Plan:
    """The plan that leads to `after`, as means, in order of time."""
    assert total.dest is not None
    rank = position_order(after.positions, after.mask).argsort(dim=1)
    return Plan(total.count, total.num_slots, compose_assignment(rank, total.dest))


def _distinct(tokens: Tokens) -> bool:
    """Whether no two tokens of a video have the same position, so that it determines their order."""
    padding = -1 - torch.arange(tokens.N, device=tokens.device)
    key = torch.where(tokens.mask, position_keys(tokens.positions), padding).sort(dim=1).values
    return not bool((key[:, 1:] == key[:, :-1]).any())


def _excess(tokens: Tokens, target: Tensor) -> Tensor:
    return (tokens.count - target).clamp(min=0)
