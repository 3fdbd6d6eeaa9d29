"""LFTR, approximated: the frames that bring something new, and in each the patches that are unlike the rest."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.bipartite import best_match
from fewtokens.methods.ops.groups import follow, frames_for, share_out
from fewtokens.methods.ops.segments import rank_within
from fewtokens.methods.ops.temporal import cosine


class Lftr(Reducer):
    """An approximation of LFTR (arXiv 2501.17391), whose code is not public: temporal, then spatial reduction.

    Frames are scored by novelty, 1 - cosine of their mean to that of the frame before; the others merge, place by
    place, into the last one that stays. In each frame that stays, patches are scored by distinctiveness, 1 - mean
    cosine to its other patches; the others merge into their most similar one. Neither score is learned. Only the
    abstract's outline is the paper's; the scores are ours.

    Args:
        keep: share of the cells (float) or count (int).
        time: of the budget's reduction the part that falls to frames: keep**time of them stay.
    """

    paper = "approximation of LFTR, arXiv 2501.17391 (no public code; from the abstract)"
    license = "ours"
    cost = "O(T n^2 C keep)"
    full_grid = True

    def __init__(self, keep: float | int | str = 0.25, *, time: float = 0.5) -> None:
        super().__init__()
        self.take_budget(keep)
        if not 0 <= time <= 1:
            raise ValueError(f"time is the part of the reduction that falls to frames, in [0, 1], got {time}")
        self.time = float(time)

    def plan(self, tokens: Tokens, **cues: Any) -> Plan:
        B, T, n = tokens.B, tokens.grid.T, tokens.grid.cells_per_frame
        x = tokens.require_full_grid(self.name).features.detach().float().unflatten(1, (T, n))
        there = tokens.mask.unflatten(1, (T, n))[..., 0]
        with torch.no_grad():
            mean = x.mean(2)
            novelty = torch.cat([torch.full_like(mean[:, :1, 0], 2.0), 1 - cosine(mean[:, 1:], mean[:, :-1])], 1)
            number = torch.tensor(
                [frames_for(grid, self.planned_count(grid) or 1, self.time) for grid in tokens.grid.videos(B)],
                device=x.device,
            )
            rank = novelty.masked_fill(~there, -1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            stays = (rank < number[:, None]) & there
            t = torch.arange(T, device=x.device)
            into = t.masked_fill(~stays, 0).cummax(1).values[..., None].expand(-1, -1, n)  # the first frame stays
            place = torch.arange(n, device=x.device)
            by_frames = Plan.group((into * n + place).flatten(1).masked_fill(~tokens.mask, -1), tokens, T * n)
        fewer = tokens.apply(by_frames)
        with torch.no_grad():
            group = follow(by_frames, into.flatten(1), fewer)
            # Whole frames in a row again: those that stay, n tokens each.
            frames = int(number.max())
            unit = F.normalize(fewer.features.detach().float(), dim=2).unflatten(1, (frames, n))
            total = unit.sum(2, keepdim=True)
            distinct = 1 - ((unit * total).sum(3) - unit.square().sum(3)) / max(1, n - 1)
            counts = share_out(self.counts(tokens), stays * n)
            kept = rank_within(-distinct.flatten(1), group, T) < counts.gather(1, group.clamp(min=0))
            kept = (kept & fewer.mask).reshape(B * frames, n)
            rows = unit.flatten(0, 1)
            _, nearest = best_match(rows, rows, kept)
            label = torch.where(kept, place, nearest).reshape(B, frames, n)
            label = (label + n * torch.arange(frames, device=x.device)[:, None]).flatten(1)
        return by_frames.then(Plan.group(label.masked_fill(~fewer.mask, -1), fewer, frames * n))
