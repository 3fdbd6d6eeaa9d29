"""Run-Length Tokenization (RLT), arXiv 2411.05222."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.runs import join_runs, last_frame, plan_runs
from fewtokens.methods.ops.temporal import LastFrame

# The scale of the paper's tau.
_IMAGENET_STD = (0.229, 0.224, 0.225)


class Rlt(Reducer):
    """Keeps the first patch of each run of unchanged patches; the encoder skips the others.

    RLT (arXiv 2411.05222). A run is a patch and the patches at the same position in the following frames, until one of
    them has changed: its mean absolute difference from the patch one frame earlier exceeds tau. Every patch of the
    first frame starts a run. If the patches of an encoder span several frames (tubelets), the last frame of a patch is
    compared with the first frame of the patch before it, as in the paper. Each run is one token at the position of its
    first patch; the size of the token is the length of the run, and sizes sum to T*H*W. Assumes a static camera: with
    panning, noise or fades few tokens are saved. The paper's learned embedding of run lengths, which requires
    fine-tuning, is `length_embedding`.

    Args:
        tau: threshold, at least 0, on pixels divided by ImageNet's standard deviation. Default: 0.1, as in the paper.
        keep: budget in place of tau, a fraction of the cells (float), a count (int) or "8/frame": the number of runs,
            started where the change is largest; at least one frame.
    """

    stage = "pixels"
    full_grid = True
    paper = "Don't Look Twice: Faster Video Transformers with Run-Length Tokenization, arXiv 2411.05222"
    license = "written from the paper; reference code MIT"
    cost = "O(pixels); streaming state: one frame"

    def __init__(self, tau: float | None = None, *, keep: float | int | str | None = None) -> None:
        super().__init__()
        self.set_budget(keep, tau=tau)
        if tau is not None and tau < 0:
            raise ValueError(f"tau must be at least 0, got {tau}")
        self.tau = None if self.budget else 0.1 if tau is None else float(tau)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("pixels",)

    @property
    def causal(self) -> bool:
        return self.budget is None

    def min_count(self, grid: Grid) -> int:
        return grid.cells_per_frame

    def plan(self, tokens: Tokens, *, pixels: Tensor, last: LastFrame | None = None) -> Plan:
        counts = self.counts(tokens) if self.budget else None
        return plan_runs(tokens, pixels, difference, threshold=self.tau, counts=counts, last=last)

    def step(self, tokens: Tokens, state: LastFrame | None = None, **cues: Any) -> tuple[Tokens, LastFrame]:
        """As `Method.step`. A cell whose run began in an earlier chunk counts as dropped; `join` credits it."""
        if not self.causal:
            return super().step(tokens, state, **cues)
        plan = self.decide(tokens, last=state, **cues)
        return tokens.apply(plan), last_frame(tokens, cues["pixels"])

    def join(self, chunks: Sequence[Tokens]) -> Tokens:
        return join_runs(chunks)


def difference(before: Tensor, now: Tensor) -> Tensor:
    """Mean absolute difference of patches [B,N,D] in the paper's scale, [B,N]."""
    D = now.shape[-1]
    weight = (1 / (D * torch.tensor(_IMAGENET_STD, device=now.device))).repeat(D // 3)
    return (before - now).abs_() @ weight
