"""Differential Token Drop (DTD) of TimeChat-Online, arXiv 2504.17343."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.method import Method, check_keep, planned_count
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.temporal import LastFrame, cosine, with_previous


class Dtd(Method):
    """Drops what is like the same place one frame before; the first frame whole.

    The frame before is always the original one, kept or not, so a slow drift goes unseen (as in the paper).

    Args:
        tau: "feature": drop where the cosine is above tau (reference default 0.5). "relative": drop the
            int(tau * tokens) most similar tokens of each frame. "pixel": drop where the mean absolute
            difference between the last sub-frame and the first sub-frame of the patch before is below tau,
            on values of 0..1. None: 0.5 for the first two, 0.1 for pixels (ours; the paper gives none).
        mode: "feature", "relative" or "pixel".
        keep: a budget instead of tau: so many tokens, those that change most; at least one frame.
    """

    paper = "TimeChat-Online: 80% Visual Tokens are Naturally Redundant, arXiv 2504.17343"
    license = "written from the description; reference BSD-3, research use according to its README"
    cost = "O(NC); streaming state of one frame"
    instead_of_keep = ("tau",)
    fill = "hold"
    budget = False

    def __init__(self, tau: float | None = None, *, mode: str = "feature", keep: float | int | None = None) -> None:
        super().__init__()
        if mode not in ("feature", "relative", "pixel"):
            raise ValueError(f"dtd has the modes feature, relative and pixel, not {mode!r}")
        if keep is not None and (tau is not None or mode == "relative"):
            raise ValueError("dtd takes tau= or keep=, not both; in relative mode tau is its budget")
        self.keep = None if keep is None else check_keep(keep)
        self.threshold = (0.1 if mode == "pixel" else 0.5) if tau is None else float(tau)
        self.tau = self.threshold if keep is None else None
        low = -1.0 if mode == "feature" else 0.0
        if not low <= self.threshold <= 1:
            raise ValueError(f"tau must be in [{low:g}, 1] for dtd in {mode} mode, got {tau}")
        self.mode = mode
        self.budget = mode == "relative" or keep is not None
        self.causal = keep is None
        if mode == "pixel":
            self.needs = ("pixels",)

    def planned_count(self, grid: Grid) -> int | None:
        if self.keep is not None:
            return max(grid.cells_per_frame, planned_count(grid, self.keep))
        if self.mode != "relative":
            return None
        n = grid.cells_per_frame
        return n + (grid.T - 1) * (n - int(n * self.threshold))

    def plan(self, tokens: Tokens, *, pixels: Tensor | None = None, last: Tensor | None = None) -> Plan:
        if pixels is not None:
            before, known = with_previous(pixels[:, :, 0], tokens, last)
            change = (before.float() - pixels[:, :, -1].float()).abs().mean(-1)
            drop = change < self.threshold
        else:
            before, known = with_previous(tokens.features, tokens, last)
            similarity = cosine(tokens.features, before)
            change = 1 - similarity
            if self.mode == "feature":
                drop = similarity > self.threshold
            else:
                drop = _most_similar(similarity.masked_fill(~known, -2), tokens, self.threshold)
        if self.keep is not None:
            return Plan.top(change.masked_fill(~known, torch.inf), self.counts(tokens), tokens)
        return Plan.keep(tokens.mask & ~(drop & known))

    def step(self, tokens: Tokens, state: LastFrame | None = None, **cues: Tensor) -> tuple[Tokens, LastFrame]:
        """The next frames of a video, one token for each cell; any chunking gives the offline result."""
        if self.keep is not None:
            raise ValueError("dtd with a budget looks at the whole video; chunk by chunk it takes tau=")
        tokens.require_full_grid("dtd")
        values = cues["pixels"][:, :, 0] if "pixels" in cues else tokens.features
        with torch.no_grad():
            plan = self.plan(tokens, last=None if state is None else state.last, **cues)
        return tokens.apply(plan), LastFrame(values[:, -tokens.grid.cells_per_frame :].detach())


def _most_similar(similarity: Tensor, tokens: Tokens, tau: float) -> Tensor:
    """The int(tau * n) most similar tokens of each frame of n tokens, bool [B,N]."""
    frame = tokens.frame.masked_fill(~tokens.mask, tokens.grid.T)
    order = similarity.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, frame.gather(1, order).argsort(dim=1, stable=True))  # by frame, then similarity
    count = F.one_hot(frame, tokens.grid.T + 1).sum(1)  # [B,T+1]
    start = F.pad(count.cumsum(1), (1, 0))[:, :-1]
    rank = order.argsort(dim=1) - start.gather(1, frame)
    return rank < (count.double() * tau).long().gather(1, frame)
