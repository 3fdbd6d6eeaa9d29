"""DyCoke's temporal token merging: in groups of four frames, what is like an earlier frame goes."""

from __future__ import annotations

import torch
from torch import Tensor

from fewtokens.grid import Grid
from fewtokens.method import Method
from fewtokens.plan import Plan
from fewtokens.reduce.temporal import cosine
from fewtokens.tokens import Tokens


class DyCoke(Method):
    """Of every four frames the first stays whole, the others keep what is least like an earlier one.

    DyCoke (arXiv 2411.15024), its first stage (TTM). Frames 1 and 3 of a group are compared with the frame just before
    them (0 and 2), frame 2 with frame 0, each place with the same place; each keeps its int((1 - rate) * n) least
    similar tokens. Despite its name nothing is merged: the rest is dropped.

    The published code loses the last of an odd number of frames, fails below five frames, and never prunes the third
    frame of the last group. Here all frames are there and any number will do; the last of these is kept by default,
    because the paper's counts are made with it.

    Args:
        rate: share that goes of each compared frame; 0.7 in the paper's evaluation (0.3 in the code's own default).
        last_group: "whole": the third frame of the last group stays, as published; "pruned": it is treated as the
            others.
    """

    paper = "DyCoke: Dynamic Compression of Tokens, arXiv 2411.15024, section 3.2"
    licence = "written from the description; reference Apache-2.0"
    cost = "O(NC)"
    fill = "hold"
    dense = True

    def __init__(self, rate: float = 0.7, *, last_group: str = "whole") -> None:
        super().__init__()
        if not 0 <= rate <= 1:
            raise ValueError(f"rate is the share that goes of a frame, in [0, 1], got {rate}")
        if last_group not in ("whole", "pruned"):
            raise ValueError(f"last_group must be 'whole' or 'pruned', got {last_group!r}")
        self.rate, self.last_group = float(rate), last_group

    def _compared(self, frames: int, t: int) -> int | None:
        """The frame that frame t is compared with, or None where it stays whole."""
        place = t % 4
        if place in (1, 3):
            return t - 1
        if place == 2 and (self.last_group == "pruned" or t - 2 < frames - 4):
            return t - 2
        return None

    def _stays(self, per_frame: int) -> int:
        # 0.3 * 10 is 3, not 2, whatever the floating point says.
        return int((1 - self.rate) * per_frame + 1e-6)

    def planned_count(self, grid: Grid) -> int:
        pruned = sum(self._compared(grid.T, t) is not None for t in range(grid.T))
        return (grid.T - pruned) * grid.cells_per_frame + pruned * self._stays(grid.cells_per_frame)

    def plan(self, tokens: Tokens) -> Plan:
        x = tokens.whole_grid(self.name).features.unflatten(1, (tokens.grid.T, -1))  # [B,T,n,C]
        B, T, n, _ = x.shape
        # Which frame each is compared with depends on a video's own length.
        lengths = [grid.T for grid in tokens.grid.videos(B)]
        table = [[self._compared(length, t) for t in range(T)] for length in lengths]
        whole = torch.tensor([[t is None for t in row] for row in table], device=x.device)
        earlier = torch.tensor([[0 if t is None else t for t in row] for row in table], device=x.device)
        before = x.gather(1, earlier[..., None, None].expand_as(x))
        likeness: Tensor = cosine(x, before)  # [B,T,n]
        rank = likeness.argsort(dim=2, stable=True).argsort(dim=2)
        kept = (rank < self._stays(n)) | whole[..., None]
        return Plan.keep(kept.flatten(1) & tokens.mask)
