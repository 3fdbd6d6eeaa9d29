"""Gated Residual Tokenization (GRT), its gate: a patch that has not moved is not embedded again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.runs import join_runs, last_frame, plan_runs
from fewtokens.methods.ops.temporal import LastFrame

# Constants of SSIM for values in 0..1 (Wang et al. 2004).
_C1, _C2 = 0.01**2, 0.03**2


class Grt(Reducer):
    """A patch is a token where it differs from the same place one frame before; the first frame whole.

    GRT of Dense Video Understanding (arXiv 2509.14199), the gate before the encoder. There a patch that stays takes the
    embedding of the one before and the sequence is as long as ever; here the encoder never sees it, and its cell goes
    to the token that holds its place. The merging of scenes after the projector needs the language model's head and is
    not here.

    Args:
        tau: threshold; 0.3 in the paper (None).
        keep: a budget instead: as many patches, those that change most; at least one frame.
        measure: "l2": length of the difference of two patches, on pixels normalized to mean 0.5 and deviation 0.5 (as
            published; a patch has hundreds of values, so little noise passes). "rms": that length over the root of
            their number. "ssim": 1 - structural similarity of the two patches.
    """

    stage = "pixels"
    full_grid = True
    paper = "Dense Video Understanding with Gated Residual Tokenization, arXiv 2509.14199"
    license = "written from the description; the reference states none for its code"
    cost = "O(pixels); streaming state of one frame"

    def __init__(self, tau: float | None = None, *, keep: float | int | str | None = None, measure: str = "l2") -> None:
        super().__init__()
        self.take_budget(keep, tau=tau)
        if tau is not None and tau < 0:
            raise ValueError(f"tau is a difference and cannot be negative, got {tau}")
        if measure not in ("l2", "rms", "ssim"):
            raise ValueError(f"measure must be 'l2', 'rms' or 'ssim', got {measure!r}")
        self.tau = None if self.budget else 0.3 if tau is None else float(tau)
        self.measure = measure

    @property
    def needs(self) -> tuple[str, ...]:
        return ("pixels",)

    @property
    def causal(self) -> bool:
        return self.budget is None

    def fewest(self, grid: Grid) -> int:
        return grid.cells_per_frame

    def change(self, before: Tensor, now: Tensor) -> Tensor:
        """How much patches [B,N,D] in 0..1 differ, [B,N]."""
        if self.measure == "ssim":
            return 1 - _ssim(before.unflatten(-1, (-1, 3)), now.unflatten(-1, (-1, 3)))
        length = 2 * (before - now).norm(dim=-1)
        return length if self.measure == "l2" else length / now.shape[-1] ** 0.5

    def plan(self, tokens: Tokens, *, pixels: Tensor, last: LastFrame | None = None) -> Plan:
        counts = self.counts(tokens) if self.budget else None
        tokens = tokens.require_full_grid(self.name)
        return plan_runs(tokens, pixels, self.change, threshold=self.tau, counts=counts, last=last)

    def step(self, tokens: Tokens, state: LastFrame | None = None, **cues: Any) -> tuple[Tokens, LastFrame]:
        """As `Method.step`. A cell that holds from an earlier chunk counts as dropped; `join` credits it."""
        if not self.causal:
            return super().step(tokens, state, **cues)
        plan = self.decide(tokens, last=state, **cues)
        return tokens.apply(plan), last_frame(tokens, cues["pixels"])

    def join(self, chunks: Sequence[Tokens]) -> Tokens:
        return join_runs(chunks)


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of whole patches [B,N,pixels,3], over a channel's pixels; mean over channels, [B,N]."""
    mean_a, mean_b = a.mean(2), b.mean(2)
    apart_a, apart_b = a - mean_a[:, :, None], b - mean_b[:, :, None]
    variance = (apart_a.square() + apart_b.square()).mean(2)
    together = (apart_a * apart_b).mean(2)
    light = (2 * mean_a * mean_b + _C1) / (mean_a.square() + mean_b.square() + _C1)
    return (light * (2 * together + _C2) / (variance + _C2)).mean(-1)
