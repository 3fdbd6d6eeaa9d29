"""TESTA: whole frames merge first, then patches within the frames that are left."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.bipartite import merge_to
from fewtokens.methods.ops.groups import follow, frames_for, merge_within, share_out


class Testa(Reducer):
    """Merges frames that look alike, place by place, and then the patches of each frame.

    TESTA (arXiv 2310.19060), here on features: the paper does both in every block of a TimeSformer, by turns. Frames
    are matched by the mean similarity of their patches (the reference code lets patches vote by the mode of continuous
    similarities, which is their smallest). Frames and patches stay in order. Of the budget's reduction the part `time`
    falls to frames: keep**time of them stay, 0.26 as in the paper's 32 frames to 20 and 196 patches to 52.

    Args:
        keep: share of the cells (float) or count (int).
        time: 0 merges patches only, 1 as many frames as the budget needs.
    """

    # Not a test, whatever its name begins with.
    __test__ = False
    paper = "TESTA: Temporal-Spatial Token Aggregation, arXiv 2310.19060"
    license = "written from the description; reference MIT, with files derived from a non-commercial one"
    cost = "O(T^2 n C + T n^2 C)"
    full_grid = True

    def __init__(self, keep: float | int | str = 0.25, *, time: float = 0.26) -> None:
        super().__init__()
        self.take_budget(keep)
        if not 0 <= time <= 1:
            raise ValueError(f"time is the part of the reduction that falls to frames, in [0, 1], got {time}")
        self.time = float(time)

    def plan(self, tokens: Tokens, **cues: Any) -> Plan:
        B, T, n = tokens.B, tokens.grid.T, tokens.grid.cells_per_frame
        x = tokens.require_full_grid(self.name).features.detach().float()
        there = tokens.mask.unflatten(1, (T, n))[..., 0]
        with torch.no_grad():
            # A frame is one long row; cosines of such rows are means over places where each place has length 1.
            rows = F.normalize(x, dim=2).unflatten(1, (T, n)).flatten(2)
            frames = Tokens.from_cells(rows, Grid(T, 1, 1)).replace(mask=there, sizes=there.float())
            index = torch.arange(T, device=x.device).expand(B, -1).masked_fill(~there, -1)
            wanted = torch.tensor(
                [frames_for(grid, self.planned_count(grid) or 1, self.time) for grid in tokens.grid.videos(B)],
                device=x.device,
            )
            frames = frames.replace(assignment=index)
            merged = merge_to(frames, wanted)
            assert merged.dest is not None
            frame = merged.dest.repeat_interleave(n, 1)
            label = (frame * n + torch.arange(n, device=x.device).repeat(T)).masked_fill(~tokens.mask, -1)
            by_frames = Plan.group(label, tokens, merged.num_slots * n)
        fewer = tokens.apply(by_frames)
        size = (torch.arange(merged.num_slots, device=x.device) < wanted[:, None]) * n
        counts = share_out(self.counts(tokens), size)
        return by_frames.then(merge_within(fewer, follow(by_frames, frame, fewer), counts))
