"""Gated Residual Tokenization (GRT), its gate: a patch that has not changed is not embedded again."""

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
    """Drops patches unchanged since the previous frame, before the encoder.

    GRT of Dense Video Understanding (arXiv 2509.14199), the gate before the encoder; the first frame is kept in full.
    In the paper an unchanged patch reuses the previous embedding, and the sequence keeps its length; here the encoder
    never sees it, and its cell is assigned to the last token at the same position. The paper's merging of scenes after
    the projector requires the language model's head and is not implemented.

    Args:
        tau: threshold above which a patch is kept, at least 0. Default: 0.3, as in the paper.
        keep: budget in place of tau, a fraction of the cells (float), a count (int) or "8/frame": keeps the patches
            that change most, at least one frame.
        measure: "l2" (default, as published): norm of the difference of two patches, for pixels normalized to mean 0.5
            and standard deviation 0.5; it sums over hundreds of values, so even weak noise exceeds tau. "rms": that
            norm over the square root of the number of values. "ssim": 1 - structural similarity of the two patches.
    """

    stage = "pixels"
    full_grid = True
    paper = "Dense Video Understanding with Gated Residual Tokenization, arXiv 2509.14199"
    license = "written from the description; the reference code states no license"
    cost = "O(pixels); streaming state: one frame"

    def __init__(self, tau: float | None = None, *, keep: float | int | str | None = None, measure: str = "l2") -> None:
        super().__init__()
        self.set_budget(keep, tau=tau)
        if tau is not None and tau < 0:
            raise ValueError(f"tau must be at least 0, got {tau}")
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

    def min_count(self, grid: Grid) -> int:
        return grid.cells_per_frame

    def change(self, before: Tensor, now: Tensor) -> Tensor:
        """The difference of patches [B,N,D] in 0..1, [B,N]."""
        if self.measure == "ssim":
            return 1 - _ssim(before.unflatten(-1, (-1, 3)), now.unflatten(-1, (-1, 3)))
        length = 2 * (before - now).norm(dim=-1)
        return length if self.measure == "l2" else length / now.shape[-1] ** 0.5

    def plan(self, tokens: Tokens, *, pixels: Tensor, last: LastFrame | None = None) -> Plan:
        counts = self.counts(tokens) if self.budget else None
        return plan_runs(tokens, pixels, self.change, threshold=self.tau, counts=counts, last=last)

    def step(self, tokens: Tokens, state: LastFrame | None = None, **cues: Any) -> tuple[Tokens, LastFrame]:
        """As `Method.step`. A cell held since an earlier chunk counts as dropped; `join` credits it to its token."""
        if not self.causal:
            return super().step(tokens, state, **cues)
        plan = self.decide(tokens, last=state, **cues)
        return tokens.apply(plan), last_frame(tokens, cues["pixels"])

    def join(self, chunks: Sequence[Tokens]) -> Tokens:
        return join_runs(chunks)


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of full patches [B,N,pixels,3], per channel, averaged over channels, [B,N]."""
    mean_a, mean_b = a.mean(2), b.mean(2)
    centered_a, centered_b = a - mean_a[:, :, None], b - mean_b[:, :, None]
    variance = (centered_a.square() + centered_b.square()).mean(2)
    covariance = (centered_a * centered_b).mean(2)
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a.square() + mean_b.square() + _C1)
    return (luminance * (2 * covariance + _C2) / (variance + _C2)).mean(-1)
