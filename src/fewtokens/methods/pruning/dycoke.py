"""DyCoke's temporal token merging: in groups of four frames, what is like an earlier frame goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.shapes import by_shape
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.groups import share_out
from fewtokens.methods.ops.temporal import cosine


@dataclass(frozen=True)
class DyCokeState:
    """What is remembered between chunks.

    Attributes:
        past: the first frame of the last group and the last frame, [B,2*H*W,C]. Its size never grows.
        frames: how many there were.
    """

    past: Tensor
    frames: int

    __repr__ = by_shape


class DyCoke(Reducer):
    """Of every four frames the first stays whole, the others keep what is least like an earlier one.

    DyCoke (arXiv 2411.15024), its first stage (TTM). Frames 1 and 3 of a group are compared with the frame just before
    them (0 and 2), frame 2 with frame 0, each place with the same place; each keeps its int((1 - rate) * n) least
    similar tokens. Despite its name nothing is merged: the rest is dropped.

    The published code loses the last of an odd number of frames, fails below five frames, and never prunes the third
    frame of the last group. Here all frames are there and any number will do; the last of these is kept by default,
    because the paper's counts are made with it.

    Args:
        rate: share that goes of each compared frame; 0.7 (None) in the paper's evaluation (0.3 in the code's own
            default).
        keep: a budget instead, dealt to the compared frames evenly; at least the frames that stay whole, a quarter.
        last_group: "whole": the third frame of the last group stays, as published; "pruned": it is treated as the
            others.
    """

    paper = "DyCoke: Dynamic Compression of Tokens, arXiv 2411.15024, section 3.2"
    license = "written from the description; reference Apache-2.0"
    cost = "O(NC); streaming state of two frames"
    full_grid = True

    def __init__(
        self, rate: float | None = None, *, keep: float | int | str | None = None, last_group: str = "whole"
    ) -> None:
        super().__init__()
        self.take_budget(keep, rate=rate)
        if rate is not None and not 0 <= rate <= 1:
            raise ValueError(f"rate is the share that goes of a frame, in [0, 1], got {rate}")
        if last_group not in ("whole", "pruned"):
            raise ValueError(f"last_group must be 'whole' or 'pruned', got {last_group!r}")
        self.rate = None if self.budget else 0.7 if rate is None else float(rate)
        self.last_group = last_group

    @property
    def causal(self) -> bool:
        # Which group is the last one is not known chunk by chunk.
        return self.budget is None and self.last_group == "pruned"

    def _compared(self, frames: int, t: int) -> int | None:
        """The frame that frame t is compared with, or None where it stays whole."""
        place = t % 4
        if place in (1, 3):
            return t - 1
        if place == 2 and (self.last_group == "pruned" or t - 2 < frames - 4):
            return t - 2
        return None

    def _pruned(self, grid: Grid) -> int:
        """How many frames are compared with an earlier one."""
        return sum(self._compared(grid.T, t) is not None for t in range(grid.T))

    def _stays(self, per_frame: int) -> int:
        # 0.3 * 10 is 3, not 2, whatever the floating point says.
        return int((1 - (self.rate or 0)) * per_frame + 1e-6)

    def planned_count(self, grid: Grid) -> int:
        pruned = self._pruned(grid)
        whole = (grid.T - pruned) * grid.cells_per_frame
        if self.budget is not None:
            return max(whole, self.budget.count(grid))
        return whole + pruned * self._stays(grid.cells_per_frame)

    def plan(self, tokens: Tokens, *, state: DyCokeState | None = None) -> Plan:
        x = tokens.require_full_grid(self.name).features.unflatten(1, (tokens.grid.T, -1))  # [B,T,n,C]
        B, T, n, _ = x.shape
        start = 0 if state is None else state.frames
        # Which frame each is compared with depends on a video's own length.
        lengths = [start + grid.T for grid in tokens.grid.videos(B)]
        table = [[self._compared(length, start + t) for t in range(T)] for length in lengths]
        whole = torch.tensor([[t is None for t in row] for row in table], device=x.device)
        earlier = torch.tensor([[start + t if e is None else e for t, e in enumerate(row)] for row in table])
        # Before the chunk there are the first frame of its group and the last frame.
        past = x[:, :1].expand(-1, 2, -1, -1) if state is None else state.past.unflatten(1, (2, -1))
        index = torch.where(earlier >= start, earlier - start + 2, (earlier == start - 1).long()).to(x.device)
        before = torch.cat([past, x], 1).gather(1, index[..., None, None].expand_as(x))
        likeness: Tensor = cosine(x, before)  # [B,T,n]
        rank = likeness.argsort(dim=2, stable=True).argsort(dim=2)
        stays = torch.full((B, T), self._stays(n), device=x.device)
        if self.budget is not None:
            size = (~whole & tokens.mask.unflatten(1, (T, n))[..., 0]) * n
            spare = self.counts(tokens) - (tokens.count - size.sum(1))
            stays = share_out(spare, size)
        kept = (rank < stays[..., None]) | whole[..., None]
        return Plan.keep(kept.flatten(1) & tokens.mask, dropped="held")

    def step(self, tokens: Tokens, state: DyCokeState | None = None, **cues: Any) -> tuple[Tokens, DyCokeState]:
        """As `Method.step`, with rate= and last_group='pruned'; any chunking gives the offline result."""
        if not self.causal:
            return super().step(tokens, state, **cues)
        plan = self.decide(tokens, state=state)
        x = tokens.features.detach().unflatten(1, (tokens.grid.T, -1))
        start = 0 if state is None else state.frames
        frames = start + x.shape[1]
        group = (frames - 1) // 4 * 4  # the first frame of the group that the chunk ends in
        first = x[:, group - start] if group >= start else state.past.unflatten(1, (2, -1))[:, 0]  # type: ignore[union-attr]
        return tokens.apply(plan), DyCokeState(torch.cat([first, x[:, -1]], 1), frames)
