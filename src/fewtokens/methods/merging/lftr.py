"""LFTR, approximated: the frames that add something new, and their most distinctive patches."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.bipartite import best_match
from fewtokens.methods.ops.groups import allocate, carry_labels, num_frames_to_keep
from fewtokens.methods.ops.segments import rank_within
from fewtokens.methods.ops.temporal import cosine


class Lftr(Reducer):
    """Merges redundant frames, then patches within frames (approximates LFTR).

    LFTR (arXiv 2501.17391) has no public code. Frames are scored by novelty, 1 - cosine of their mean to the mean of
    the previous frame; the others merge, position by position, into the last frame that is kept. In each kept frame,
    patches are scored by distinctiveness, 1 - mean cosine to its other patches; the others merge into their most
    similar kept patch. Neither score is learned. Only the outline follows the paper's abstract; the scores are ours.

    Args:
        keep: budget, a fraction of the cells (float), a count (int) or "8/frame". Default: 0.25.
        time: part of the reduction that applies to frames, in [0, 1]: a fraction keep**time of the frames is kept.
            Default: 0.5.
    """

    paper = "approximation of LFTR, arXiv 2501.17391 (no public code; from the abstract)"
    license = "original to fewtokens"
    cost = "O(T n^2 C keep) with n cells per frame"
    full_grid = True

    def __init__(self, keep: float | int | str = 0.25, *, time: float = 0.5) -> None:
        super().__init__()
        self.set_budget(keep)
        if not 0 <= time <= 1:
            raise ValueError(f"time must be in [0, 1] (the part of the reduction that applies to frames), got {time}")
        self.time = float(time)

    def plan(self, tokens: Tokens, **cues: Any) -> Plan:
        B, T, n = tokens.B, tokens.grid.T, tokens.grid.cells_per_frame
        x = tokens.features.detach().float().unflatten(1, (T, n))
        real_frames = tokens.mask.unflatten(1, (T, n))[..., 0]
        with torch.no_grad():
            mean = x.mean(2)
            novelty = torch.cat([torch.full_like(mean[:, :1, 0], 2.0), 1 - cosine(mean[:, 1:], mean[:, :-1])], 1)
            num_frames = torch.tensor(
                [num_frames_to_keep(grid, self.planned_count(grid) or 1, self.time) for grid in tokens.grid.videos(B)],
                device=x.device,
            )
            rank = novelty.masked_fill(~real_frames, -1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            frame_survives = (rank < num_frames[:, None]) & real_frames
            t = torch.arange(T, device=x.device)
            target_frame = (
                t.masked_fill(~frame_survives, 0).cummax(1).values[..., None].expand(-1, -1, n)
            )  # the first frame is always kept
            position = torch.arange(n, device=x.device)
            frame_plan = Plan.group(
                (target_frame * n + position).flatten(1).masked_fill(~tokens.mask, -1), tokens, T * n
            )
        reduced = tokens.apply(frame_plan)
        with torch.no_grad():
            group = carry_labels(frame_plan, target_frame.flatten(1), reduced)
            # Full frames again: the kept ones, n tokens each.
            frames = int(num_frames.max())
            unit = F.normalize(reduced.features.detach().float(), dim=2).unflatten(1, (frames, n))
            total = unit.sum(2, keepdim=True)
            distinct = 1 - ((unit * total).sum(3) - unit.square().sum(3)) / max(1, n - 1)
            counts = allocate(self.counts(tokens), frame_survives * n)
            patch_survives = rank_within(-distinct.flatten(1), group, T) < counts.gather(1, group.clamp(min=0))
            patch_survives = (patch_survives & reduced.mask).reshape(B * frames, n)
            rows = unit.flatten(0, 1)
            _, nearest = best_match(rows, rows, patch_survives)
            label = torch.where(patch_survives, position, nearest).reshape(B, frames, n)
            label = (label + n * torch.arange(frames, device=x.device)[:, None]).flatten(1)
        return frame_plan.then(Plan.group(label.masked_fill(~reduced.mask, -1), reduced, frames * n))
