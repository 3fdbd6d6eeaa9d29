"""Runs of a patch that stays the same over time, one token each; what the pixels methods share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fewtokens.core.batch import concatenate
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.temporal import LastFrame, with_previous

Change = Callable[[Tensor, Tensor], Tensor]


def plan_runs(
    tokens: Tokens,
    pixels: Tensor,
    change: Change,
    *,
    threshold: float | None = None,
    counts: Tensor | None = None,
    last: LastFrame | None = None,
) -> Plan:
    """A patch starts a run where it has changed; the first frame always does. The run's first patch is the token.

    Sizes are the lengths of the runs, which sum to T*H*W.

    Args:
        tokens: one for each cell.
        pixels: [B,N,P,D] in 0..1.
        change: how much patches differ, [B,N], from the first sub-frame of the patch before, float32 [B,N,D], and the
            last one of the patch itself.
        threshold: a run starts where the change is above it.
        counts: [B], instead: as many runs, started where the change is largest.
        last: the frame before the first one of `tokens`, in a stream.
    """
    before, known = with_previous(pixels[:, :, 0], tokens, last)
    difference = change(before.float(), pixels[:, :, -1].float())
    if counts is None:
        assert threshold is not None
        plan = Plan.keep(tokens.mask & (~known | (difference > threshold)))
    else:
        plan = Plan.top(difference.masked_fill(~known, torch.inf), counts, tokens)
    assert plan.dest is not None
    return replace(plan, dest=hold(plan.dest, tokens).masked_fill(~tokens.mask, -1))


def last_frame(tokens: Tokens, pixels: Tensor) -> LastFrame:
    """What is remembered of a chunk: the first sub-frame of its last frame."""
    return LastFrame.of(pixels[:, :, 0], tokens)


def join_runs(chunks: Sequence[Tokens]) -> Tokens:
    """Chunks in a row, where a cell whose run began in an earlier chunk is credited to that run."""
    joined = concatenate(chunks)
    assignment = hold(joined.assignment, joined)
    sizes = torch.zeros_like(joined.sizes)
    sizes = sizes.scatter_add(1, assignment, torch.ones_like(assignment, dtype=torch.float32))
    return joined.replace(assignment=assignment, sizes=sizes)


def hold(index: Tensor, tokens: Tokens) -> Tensor:
    """Fills -1 in a [B,S] index with the last one before it at the same place.

    Indices grow along the raster, so at one place the last one is the largest so far.
    """
    by_time = index.reshape(index.shape[0], tokens.grid.T, -1)
    return by_time.cummax(dim=1).values.reshape(index.shape)
