"""Runs of a patch that stays the same over time, one token each; what the pixels methods share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.batch import concatenate
from fewtokens.core.grid import Grid
from fewtokens.core.method import Method, check_keep, planned_count
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.temporal import LastFrame, with_previous


class Runs(Method):
    """A patch starts a run where it has changed; the first frame always does. The run's first patch is the token.

    A method that extends this gives its threshold to `__init__` and says by `change(before, now)` how much patches
    differ, [B,N], from pixels in 0..1: `before` is the first sub-frame of the patch before, float32 [B,N,D], `now` the
    last one of the patch itself. Sizes are the lengths of the runs, which sum to T*H*W.
    """

    change: Callable[[Tensor, Tensor], Tensor]

    stage = "pixels"
    needs = ("pixels",)
    instead_of_keep = ("tau",)
    budget = False
    partition = True

    def __init__(self, threshold: float, keep: float | int | None) -> None:
        super().__init__()
        self.threshold = threshold
        self.keep = None if keep is None else check_keep(keep)
        self.budget = keep is not None
        # A budget is met by looking at the whole video.
        self.causal = keep is None

    def planned_count(self, grid: Grid) -> int | None:
        return None if self.keep is None else max(grid.cells_per_frame, planned_count(grid, self.keep))

    def plan(self, tokens: Tokens, *, pixels: Tensor, last: Tensor | None = None) -> Plan:
        tokens.require_full_grid(self.name)
        before, known = with_previous(pixels[:, :, 0], tokens, last)
        change = self.change(before.float(), pixels[:, :, -1].float())
        if self.keep is None:
            plan = Plan.keep(tokens.mask & (~known | (change > self.threshold)))
        else:
            plan = Plan.top(change.masked_fill(~known, torch.inf), self.counts(tokens), tokens)
        assert plan.dest is not None
        return replace(plan, dest=hold(plan.dest, tokens).masked_fill(~tokens.mask, -1))

    def step(self, tokens: Tokens, state: LastFrame | None = None, **cues: Any) -> tuple[Tokens, LastFrame]:
        """The next frames of a video, one token for each cell.

        A cell whose run began in an earlier chunk is marked dropped here; `join` credits it to its run.
        """
        if not self.causal:
            raise ValueError(f"chunk by chunk {self.name} takes a threshold alone: the rest needs the whole video")
        with torch.no_grad():
            plan = self.plan(tokens, last=None if state is None else state.last, **cues)
        return tokens.apply(plan), LastFrame(cues["pixels"][:, -tokens.grid.cells_per_frame :, 0].detach())

    def join(self, chunks: Sequence[Tokens]) -> Tokens:
        joined = concatenate(chunks)
        source = hold(joined.assignment, joined)
        sizes = torch.zeros_like(joined.sizes).scatter_add(1, source, torch.ones_like(source, dtype=torch.float32))
        return joined.replace(assignment=source, sizes=sizes)


def hold(index: Tensor, tokens: Tokens) -> Tensor:
    """Fills -1 in a [B,S] index with the last one before it at the same place.

    Indices grow along the raster, so at one place the last one is the largest so far.
    """
    by_time = index.reshape(index.shape[0], tokens.grid.T, -1)
    return by_time.cummax(dim=1).values.reshape(index.shape)
