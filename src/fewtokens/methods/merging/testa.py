"""TESTA: merges full frames first, then patches within the remaining frames."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.bipartite import merge_to
from fewtokens.methods.ops.groups import allocate, carry_labels, merge_within, num_frames_to_keep


class Testa(Reducer):
    """Merges similar frames position by position, then similar patches per frame.

    TESTA (arXiv 2310.19060), applied to features here: the paper alternates both in every block of a TimeSformer.
    Frames are matched by the mean similarity of their patches (in the reference code patches vote by the mode of
    continuous similarities, which equals their minimum). Frames and patches keep their order. The part `time` of the
    reduction applies to frames: a fraction keep**time of them is kept. The default of 0.26 matches the paper's
    reduction from 32 frames to 20 and from 196 patches to 52.

    Args:
        keep: budget, a fraction of the cells (float), a count (int) or "8/frame". Default: 0.25.
        time: 0 merges only patches, 1 only frames as far as the budget requires, in [0, 1]. Default: 0.26.
    """

    # Not a test, despite its name.
    __test__ = False
    paper = "TESTA: Temporal-Spatial Token Aggregation, arXiv 2310.19060"
    license = "written from the description; reference code MIT, with files derived from a non-commercial source"
    cost = "O(T^2 n C + T n^2 C) with n cells per frame"
    full_grid = True

    def __init__(self, keep: float | int | str = 0.25, *, time: float = 0.26) -> None:
        super().__init__()
        self.set_budget(keep)
        if not 0 <= time <= 1:
            raise ValueError(f"time must be in [0, 1] (the part of the reduction that applies to frames), got {time}")
        self.time = float(time)

    def plan(self, tokens: Tokens, **cues: Any) -> Plan:
        B, T, n = tokens.B, tokens.grid.T, tokens.grid.cells_per_frame
        x = tokens.features.detach().float()
        real_frames = tokens.mask.unflatten(1, (T, n))[..., 0]
        grids = tokens.grid.videos(B)
        targets = [num_frames_to_keep(grid, self.planned_count(grid) or 1, self.time) for grid in grids]
        if targets == [grid.T for grid in grids]:  # no frames merge
            frame = tokens.frame.masked_fill(~tokens.mask, -1)
            return merge_within(tokens, frame, allocate(self.counts(tokens), real_frames * n))
        with torch.no_grad():
            # A frame is one long row; with unit patches, the cosine of two rows is the mean over their positions.
            rows = F.normalize(x, dim=2).unflatten(1, (T, n)).flatten(2)
            frames = Tokens.from_cells(rows, Grid(T, 1, 1)).replace(mask=real_frames, sizes=real_frames.float())
            index = torch.arange(T, device=x.device).expand(B, -1).masked_fill(~real_frames, -1)
            num_frames = torch.tensor(targets, device=x.device)
            frames = frames.replace(assignment=index)
            merged = merge_to(frames, num_frames)
            assert merged.dest is not None
            frame = merged.dest.repeat_interleave(n, 1)
            label = (frame * n + torch.arange(n, device=x.device).repeat(T)).masked_fill(~tokens.mask, -1)
            frame_plan = Plan.group(label, tokens, merged.num_slots * n)
        size = (torch.arange(merged.num_slots, device=x.device) < num_frames[:, None]) * n
        counts = allocate(self.counts(tokens), size)
        if torch.equal(counts, size):  # no patches merge
            return frame_plan
        reduced = tokens.apply(frame_plan)
        return frame_plan.then(merge_within(reduced, carry_labels(frame_plan, frame, reduced), counts))
