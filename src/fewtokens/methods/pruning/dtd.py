"""Differential Token Drop (DTD) of TimeChat-Online, arXiv 2504.17343."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.budget import ConflictingArguments
from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan, group_count
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.temporal import LastFrame, compare_with_previous, cosine, in_blocks


class Dtd(Reducer):
    """Drops patches similar to the same position in the previous frame.

    The first frame is kept in full. The comparison is always with the original previous frame, whether or not its token
    was kept, so slow drift goes undetected (as in the paper).

    Args:
        tau: threshold. "feature": drop if the cosine is above tau; default 0.5, as in the reference code. "relative":
            drop the int(tau * tokens) most similar tokens of each frame; default 0.5. "pixel": drop if the mean
            absolute difference between the patch's last sub-frame and the first sub-frame of the previous patch is
            below tau, for values in 0..1; default 0.1 (ours; the paper gives none).
        mode: "feature" (default), "relative" or "pixel".
        keep: budget in place of tau, a fraction of the cells (float), a count (int) or "8/frame": keeps the tokens that
            change most, at least one frame. Not in "relative" mode.
    """

    paper = "TimeChat-Online: 80% Visual Tokens are Naturally Redundant, arXiv 2504.17343"
    license = "written from the description; reference code BSD-3, for research use according to its README"
    cost = "O(NC); streaming state: one frame"

    def __init__(
        self, tau: float | None = None, *, mode: str = "feature", keep: float | int | str | None = None
    ) -> None:
        super().__init__()
        if mode not in ("feature", "relative", "pixel"):
            raise ValueError(f"dtd: mode must be 'feature', 'relative' or 'pixel', got {mode!r}")
        if keep is not None and mode == "relative":
            raise ConflictingArguments("dtd: keep= is not allowed in relative mode, where tau= sets the budget")
        self.set_budget(keep, tau=tau)
        self.threshold = (0.1 if mode == "pixel" else 0.5) if tau is None else float(tau)
        self.tau = None if self.budget else self.threshold
        low = -1.0 if mode == "feature" else 0.0
        if not low <= self.threshold <= 1:
            raise ValueError(f"tau must be in [{low:g}, 1] in dtd's {mode} mode, got {tau}")
        self.mode = mode

    @property
    def needs(self) -> tuple[str, ...]:
        return ("pixels",) if self.mode == "pixel" else ()

    @property
    def decides_from_pixels(self) -> bool:
        return self.mode == "pixel"

    @property
    def causal(self) -> bool:
        return self.budget is None

    def min_count(self, grid: Grid) -> int:
        return grid.cells_per_frame

    def planned_count(self, grid: Grid) -> int | None:
        if self.mode != "relative":
            return super().planned_count(grid)
        n = grid.cells_per_frame
        return n + (grid.T - 1) * (n - int(n * self.threshold))

    def plan(self, tokens: Tokens, *, pixels: Tensor | None = None, last: LastFrame | None = None) -> Plan:
        if pixels is not None:
            before, now = pixels[:, :, 0], pixels[:, :, -1]
            change, has_previous = compare_with_previous(_pixel_change, now, tokens, last, before=before)
            drop = change < self.threshold
        else:
            similarity, has_previous = compare_with_previous(cosine, tokens.features, tokens, last)
            change = 1 - similarity
            if self.mode == "feature":
                drop = similarity > self.threshold
            else:
                drop = _most_similar(similarity.masked_fill(~has_previous, -2), tokens, self.threshold)
        if self.budget is not None:
            change = change.masked_fill(~has_previous, torch.inf)
            return Plan.top(change, self.counts(tokens), tokens, num_slots=self.max_slots(tokens), dropped="held")
        return Plan.keep(tokens.mask & ~(drop & has_previous), dropped="held")

    def step(self, tokens: Tokens, state: LastFrame | None = None, **cues: Tensor) -> tuple[Tokens, LastFrame]:
        """As `Method.step`; requires a threshold (tau). Any chunking gives the offline result."""
        if not self.causal:
            return super().step(tokens, state, **cues)
        values = cues["pixels"][:, :, 0] if "pixels" in cues else tokens.features
        plan = self.decide(tokens, last=state, **cues)
        return tokens.apply(plan), LastFrame.from_tokens(values, tokens)


def _pixel_change(previous: Tensor, now: Tensor) -> Tensor:
    """The mean absolute difference of patches [B,n,D], [B,n]."""
    return in_blocks(lambda a, b: (a.float() - b.float()).abs().mean(-1), previous, now)


def _most_similar(similarity: Tensor, tokens: Tokens, tau: float) -> Tensor:
    """The int(tau * n) most similar tokens of each frame of n tokens, bool [B,N]."""
    frame = tokens.frame.masked_fill(~tokens.mask, tokens.grid.T)
    order = similarity.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, frame.gather(1, order).argsort(dim=1, stable=True))  # by frame, then similarity
    count = group_count(frame, tokens.grid.T + 1)
    start = F.pad(count.cumsum(1), (1, 0))[:, :-1]
    rank = order.argsort(dim=1) - start.gather(1, frame)
    return rank < (count.double() * tau).long().gather(1, frame)
