"""Bipartite soft matching, the step shared by everything that merges tokens pairwise.

Token Merging (ToMe), arXiv 2210.09461, section 3. Written from the published algorithm.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens

# Similarities are taken in blocks of at most this many entries (8 MiB in float32, so that a block is still
# in the cache when its maximum is taken); the whole table is never there at once.
_ENTRIES_AT_ONCE = 1 << 21


def best_match(a: Tensor, b: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """For every row of `a` the most similar row of `b`.

    Args:
        a: [B,Na,D]; b: [B,Nb,D]. Their inner product is the similarity.
        real: bool [B,Nb], which rows of `b` may be chosen; None = all.

    Returns:
        The similarity [B,Na] and the row's number, int64 [B,Na]; the first of equals.
    """
    best, index = [], []
    block = max(1, _ENTRIES_AT_ONCE // max(1, b.shape[0] * b.shape[1]))
    if torch.compiler.is_compiling():
        block = a.shape[1]  # so that an exported network takes any batch
    for rows in a.split(block, dim=1):
        similarity = rows @ b.transpose(1, 2)
        if real is not None:
            similarity.masked_fill_(~real[:, None], -torch.inf)
        value, where = similarity.max(dim=2)
        best.append(value)
        index.append(where)
    return torch.cat(best, dim=1), torch.cat(index, dim=1)


def bipartite_plan(metric: Tensor, r: int | Tensor, tokens: Tokens, num_slots: int | None = None) -> Plan:
    """Merges up to `r` tokens, each into its most similar one of the other half.

    Tokens at even places (set A) each choose their most similar token at an odd place (set B); the `r` best
    pairs are merged. Prefix tokens take part in the counting of places, as a class token in front does in
    the paper, and never merge. Out come the rest of A and then all of B: in the order of A with a prefix,
    by falling similarity without one (as in the paper; the mixing gives new pairs in the next step). Where r is 0
    nothing moves.

    Args:
        metric: [B,N,D], what similarity is measured on; cosine, taken in float32.
        r: how many tokens to take away, one number or one for each video; at most half of them go.
        num_slots: an upper bound of the tokens that are left, where it is known without a look at the data.
    """
    B, N = tokens.mask.shape
    metric = F.normalize(metric.float(), dim=2)
    first = tokens.num_prefix % 2
    a, b = metric[:, first::2], metric[:, 1 - first :: 2]
    real_a, real_b = tokens.mask[:, first::2], tokens.mask[:, 1 - first :: 2]
    if a.shape[1] == 0 or b.shape[1] == 0:
        return Plan.identity(tokens)
    # Where every slot is real the mask is a pass over the table for nothing; on a GPU, looking would wait for it, and a
    # compiled network cannot look.
    dense = not real_b.is_cuda and not torch.compiler.is_compiling() and bool(real_b.all())
    best, match = best_match(a, b, None if dense else real_b)
    best = best.masked_fill(~real_a, -torch.inf)

    # The longest video has no padding, so the number of slots is known without a look at the data.
    merged = torch.as_tensor(r, device=metric.device).minimum(tokens.count // 2)[:, None]  # [B,1]
    if num_slots is None:
        num_slots = N - min(r, N // 2) if isinstance(r, int) else int((tokens.count - merged[:, 0]).max())
    order = best.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    goes = rank < merged
    stays = ~goes & real_a
    place_a = stays.cumsum(1) - 1 if tokens.num_prefix else rank - merged
    place_b = real_a.sum(1, keepdim=True) - merged + torch.arange(b.shape[1], device=metric.device)
    dest = torch.empty(B, N, dtype=torch.int64, device=metric.device)
    dest[:, first::2] = torch.where(goes, place_b.gather(1, match), place_a)
    dest[:, 1 - first :: 2] = place_b
    # A video of which nothing goes stays in its order, whatever happens to the others of the batch.
    dest = torch.where(merged > 0, dest, torch.arange(N, device=metric.device))
    return Plan(tokens.count - merged[:, 0], num_slots, dest.masked_fill(~tokens.mask, -1))


def merge_to(tokens: Tokens, target: Tensor, planned: Sequence[int] | None = None) -> Plan:
    """Merges the most similar pairs, step by step, until no video has more than its `target` [B] tokens.

    Tokens come out in the order of their mean time, row and column.

    Args:
        tokens: [B,N,C].
        target: int64 [B].
        planned: the same numbers (or larger ones, where a video has fewer tokens) as far as they are known without a
            look at the data; needed where a graph is traced, whose steps are then as many as the smallest one needs.
    """
    # Means of one step are matched in the next one: they are not rounded in between.
    half = tokens.features.dtype in (torch.float16, torch.bfloat16)
    merged = tokens.to(torch.float32) if half else tokens.replace(features=tokens.features.detach())
    if planned is not None and torch.compiler.is_compiling():
        bound, slots = tokens.N, tokens.N
        while bound > min(planned):
            bound = -(-bound // 2)
            slots = max(min(max(planned), slots), -(-slots // 2))
            merged = merged.apply(bipartite_plan(merged.features, _excess(merged, target), merged, slots))
        return _in_order(tokens, merged)
    while bool((merged.count > target).any()):
        merged = merged.apply(bipartite_plan(merged.features, _excess(merged, target), merged))
    return _in_order(tokens, merged)


def _in_order(before: Tokens, after: Tokens) -> Plan:
    """The plan that leads there, in order of time; features are not needed for it."""
    return Plan.from_assignment(before, after.replace(features=after.features[..., :0], prefix=None).ordered())


def _excess(tokens: Tokens, target: Tensor) -> Tensor:
    return (tokens.count - target).clamp(min=0)
