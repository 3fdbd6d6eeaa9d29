"""Runs of a patch that stays the same over time, one token each; shared by the methods of stage "pixels"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fewtokens.core.batch import concatenate
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.temporal import LastFrame, compare_with_previous, in_blocks

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
    """Starts a run at each patch that has changed and in the first frame; a run's first patch is its token.

    Sizes are the lengths of the runs, which sum to T*H*W.

    Args:
        tokens: one for each cell.
        pixels: [B,N,P,D] in 0..1.
        change: function that returns the difference of patches, [B,N], from the first sub-frame of the previous patch,
            float32 [B,N,D], and the last sub-frame of the patch itself.
        threshold: a run starts if the change is above it.
        counts: [B], number of runs in place of the threshold, started where the change is largest.
        last: the frame before the first one of `tokens`, in a stream.
    """

    def measure(previous: Tensor, now: Tensor) -> Tensor:
        return in_blocks(lambda a, b: change(a.float(), b.float()), previous, now)

    difference, has_previous = compare_with_previous(measure, pixels[:, :, -1], tokens, last, before=pixels[:, :, 0])
    if counts is None:
        assert threshold is not None
        plan = Plan.keep(tokens.mask & (~has_previous | (difference > threshold)))
    else:
        plan = Plan.top(difference.masked_fill(~has_previous, torch.inf), counts, tokens)
    assert plan.dest is not None
    return replace(plan, dest=fill_forward(plan.dest, tokens).masked_fill(~tokens.mask, -1))


def last_frame(tokens: Tokens, pixels: Tensor) -> LastFrame:
    """The streaming state of a chunk: the first sub-frame of its last frame."""
    return LastFrame.from_tokens(pixels[:, :, 0], tokens)


def join_runs(chunks: Sequence[Tokens]) -> Tokens:
    """Concatenates chunks; a cell whose run began in an earlier chunk is credited to that run."""
    tokens = concatenate(chunks)
    real = tokens.grid.cell_mask(tokens.B, tokens.device)
    assignment = fill_forward(tokens.assignment, tokens).masked_fill(~real, -1)
    sizes = torch.zeros_like(tokens.sizes).scatter_add(1, assignment.clamp(min=0), real.to(tokens.sizes.dtype))
    return tokens.replace(assignment=assignment, sizes=sizes)


def fill_forward(index: Tensor, tokens: Tokens) -> Tensor:
    """Fills each -1 in a [B,S] index with the last earlier entry at the same position.

    Indices grow in raster order, so at one position the last entry is the maximum so far.
    """
    per_frame = index.reshape(index.shape[0], tokens.grid.T, -1)
    return per_frame.cummax(dim=1).values.reshape(index.shape)
