"""Run-Length Tokenization (RLT), arXiv 2411.05222."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewtokens.batch import concatenate
from fewtokens.method import Method
from fewtokens.plan import Plan
from fewtokens.reduce.temporal import with_previous
from fewtokens.tokens import Tokens

# The scale on which the paper states tau.
_IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class RltState:
    """What is remembered between chunks: the first sub-frame of the last frame of patches, [B,H*W,D]."""

    last: Tensor


class Rlt(Method):
    """A patch that stays the same over time is one token, and its size says for how long.

    A patch starts a run where the mean absolute difference between its last sub-frame and the first
    sub-frame of the patch before exceeds tau; the first frame always does. With one frame to a patch that is
    the plain difference of frames. The token is the run's first patch, at its original position; sizes are
    the run lengths, which sum to T*H*W. The paper's learned length embedding is left out: it needs training.
    Assumes a static camera; panning, noise and fades leave nothing to save.

    Args:
        tau: threshold on pixels divided by ImageNet's standard deviation (the paper's scale); 0.1 there.
    """

    stage = "pixels"
    needs = ("pixels",)
    paper = "Don't Look Twice: Faster Video Transformers with Run-Length Tokenization, arXiv 2411.05222"
    licence = "written from the paper; reference code MIT"
    cost = "O(pixels); streaming state of one frame"
    budget = False
    causal = True
    partition = True

    def __init__(self, tau: float = 0.1) -> None:
        super().__init__()
        if tau < 0:
            raise ValueError(f"tau is a difference of pixels and cannot be negative, got {tau}")
        self.tau = float(tau)

    def plan(self, tokens: Tokens, *, pixels: Tensor, last: Tensor | None = None) -> Plan:
        tokens.whole_grid("rlt")
        before, known = with_previous(pixels[:, :, 0], tokens, last)
        std = torch.tensor(_IMAGENET_STD, device=pixels.device)
        change = (before.float() - pixels[:, :, -1].float()).abs().unflatten(-1, (-1, 3)) / std
        starts = tokens.mask & (~known | (change.mean((-1, -2)) > self.tau))
        plan = Plan.keep(starts)
        assert plan.dest is not None
        return replace(plan, dest=_hold(plan.dest, tokens).masked_fill(~tokens.mask, -1))

    def step(self, tokens: Tokens, state: RltState | None = None, *, pixels: Tensor) -> tuple[Tokens, RltState]:
        """The next frames of a video, one token for each cell.

        A cell whose run began in an earlier chunk is marked dropped here; `join` credits it to its run.
        """
        with torch.no_grad():
            plan = self.plan(tokens, pixels=pixels, last=None if state is None else state.last)
        return tokens.apply(plan), RltState(pixels[:, -tokens.grid.cells_per_frame :, 0].detach())

    def join(self, chunks: Sequence[Tokens]) -> Tokens:
        joined = concatenate(chunks)
        source = _hold(joined.source, joined)
        sizes = torch.zeros_like(joined.sizes).scatter_add(1, source, torch.ones_like(source, dtype=torch.float32))
        return joined.replace(source=source, sizes=sizes)


def _hold(index: Tensor, tokens: Tokens) -> Tensor:
    """Fills -1 in a [B,S] index with the last one before it at the same place.

    Indices grow along the raster, so at one place the last one is the largest so far.
    """
    by_time = index.reshape(index.shape[0], tokens.grid.T, -1)
    return by_time.cummax(dim=1).values.reshape(index.shape)
