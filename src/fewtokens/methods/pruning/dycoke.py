"""DyCoke's temporal token merging: in groups of four frames, tokens similar to an earlier frame are dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.shapes import shape_repr
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.groups import allocate
from fewtokens.methods.ops.temporal import cosine


@dataclass(frozen=True)
class DyCokeState:
    """The streaming state between chunks; its size never grows.

    Attributes:
        past: [B,2*H*W,C], the first frame of the last group and the last frame.
        frames: number of frames seen.
    """

    past: Tensor
    frames: int

    __repr__ = shape_repr


class DyCoke(Reducer):
    """In groups of four frames, drops tokens similar to an earlier frame.

    DyCoke (arXiv 2411.15024), its first stage (TTM). The first frame of each group is kept in full; frames 1 and 3 are
    compared with the previous frame (0 and 2) and frame 2 with frame 0, position by position; each keeps its
    int((1 - rate) * n) least similar tokens. Despite its name nothing is merged: the rest is dropped.

    The published code loses the last frame of an odd number, fails below five frames, and never prunes the third frame
    of the last group. Here every frame is processed and any number of frames works; the third frame of the last group
    is kept in full by default, because the paper's counts assume it.

    Args:
        rate: fraction of each compared frame that is dropped, in [0, 1]. Default: 0.7, as in the paper's evaluation
            (0.3 is the default of the published code).
        keep: budget in place of rate, a fraction of the cells (float), a count (int) or "8/frame", split evenly over
            the compared frames; not below the frames that are kept in full, about a quarter.
        last_group: "whole" (default) keeps the third frame of the last group in full, as published; "pruned" treats it
            like the others and allows streaming.
    """

    paper = "DyCoke: Dynamic Compression of Tokens, arXiv 2411.15024, section 3.2"
    license = "written from the description; reference code Apache-2.0"
    cost = "O(NC); streaming state: two frames"
    full_grid = True

    def __init__(
        self, rate: float | None = None, *, keep: float | int | str | None = None, last_group: str = "whole"
    ) -> None:
        super().__init__()
        self.set_budget(keep, rate=rate)
        if rate is not None and not 0 <= rate <= 1:
            raise ValueError(f"rate must be in [0, 1] (the fraction of a frame that is dropped), got {rate}")
        if last_group not in ("whole", "pruned"):
            raise ValueError(f"last_group must be 'whole' or 'pruned', got {last_group!r}")
        self.rate = None if self.budget else 0.7 if rate is None else float(rate)
        self.last_group = last_group

    @property
    def causal(self) -> bool:
        # A stream does not know which group is the last one.
        return self.budget is None and self.last_group == "pruned"

    def _compared(self, frames: int, t: int) -> bool:
        """Whether frame t is compared with an earlier one; otherwise it is kept in full."""
        position = t % 4
        return position in (1, 3) or (position == 2 and (self.last_group == "pruned" or t - 2 < frames - 4))

    def _pruned(self, grid: Grid) -> int:
        """The number of frames that are compared with an earlier one."""
        return sum(self._compared(grid.T, t) for t in range(grid.T))

    def _survivors_per_frame(self, per_frame: int) -> int:
        # 0.3 * 10 is 3, not 2, despite floating-point error.
        return int((1 - (self.rate or 0)) * per_frame + 1e-6)

    def planned_count(self, grid: Grid) -> int:
        pruned = self._pruned(grid)
        in_full = (grid.T - pruned) * grid.cells_per_frame
        if self.budget is not None:
            return max(in_full, self.budget.count(grid))
        return in_full + pruned * self._survivors_per_frame(grid.cells_per_frame)

    def plan(self, tokens: Tokens, *, state: DyCokeState | None = None) -> Plan:
        x = tokens.features.unflatten(1, (tokens.grid.T, -1))  # [B,T,n,C]
        B, T, n, _ = x.shape
        start = 0 if state is None else state.frames
        # Which frames are compared depends on the length of the video.
        lengths = [start + grid.T for grid in tokens.grid.videos(B)]
        compared = [[self._compared(length, start + t) for t in range(T)] for length in lengths]
        in_full = ~torch.tensor(compared, device=x.device)
        # In a stream, the chunk is preceded by the frames of its group; only the first and the last are needed.
        r = start % 4
        if r:
            assert state is not None
            first, last = state.past.unflatten(1, (2, -1)).split(1, 1)
            x = torch.cat([*[first] * max(1, r - 1), *[last] * min(1, r - 1), x], 1)
        similarity = torch.ones(x.shape[:3], device=x.device)  # [B,r+T,n]
        for position, earlier in ((1, 0), (2, 0), (3, 2)):
            now = x[:, position::4]
            similarity[:, position::4] = cosine(x[:, earlier::4][:, : now.shape[1]], now)
        similarity = similarity[:, r:]
        rank = similarity.argsort(dim=2, stable=True).argsort(dim=2)
        survivors = torch.full((B, T), self._survivors_per_frame(n), device=x.device)
        if self.budget is not None:
            size = (~in_full & tokens.mask.unflatten(1, (T, n))[..., 0]) * n
            spare = self.counts(tokens) - (tokens.count - size.sum(1))
            survivors = allocate(spare, size)
        survives = (rank < survivors[..., None]) | in_full[..., None]
        return Plan.keep(survives.flatten(1) & tokens.mask, dropped="held")

    def step(self, tokens: Tokens, state: DyCokeState | None = None, **cues: Any) -> tuple[Tokens, DyCokeState]:
        """As `Method.step`; requires rate= and last_group='pruned'. Any chunking gives the offline result."""
        if not self.causal:
            return super().step(tokens, state, **cues)
        plan = self.decide(tokens, state=state)
        x = tokens.features.detach().unflatten(1, (tokens.grid.T, -1))
        start = 0 if state is None else state.frames
        frames = start + x.shape[1]
        group = (frames - 1) // 4 * 4  # the first frame of the group that the chunk ends in
        first = x[:, group - start] if group >= start else state.past.unflatten(1, (2, -1))[:, 0]  # type: ignore[union-attr]
        return tokens.apply(plan), DyCokeState(torch.cat([first, x[:, -1]], 1), frames)
