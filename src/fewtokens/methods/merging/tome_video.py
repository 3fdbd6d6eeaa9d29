"""ToMe on the tokens of a video: within each frame, or over the full video with halves that alternate in time."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan, group_count
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.bipartite import merge_to
from fewtokens.methods.ops.groups import allocate, merge_within


class TomeVideo(Reducer):
    """Merges the most similar tokens pairwise, within frames or over the video.

    ToMe (arXiv 2210.09461) as video pipelines use it after the encoder. "frame": each frame meets its part of the
    budget separately. "video": all tokens are matched; unlike in `tome`, odd frames are shifted by one position before
    tokens are assigned to the two halves alternately, so that the same position of consecutive frames is in opposite
    halves and can merge in the first step. (Inside an encoder that processes one frame at a time, "frame" is
    `tome_in_encoder`.)

    Over the video it takes 3 % of the time of a ViT-S/14 for the same frames (32 of 14x14 tokens), since each half of
    the tokens is compared with the other; within frames 0.5 %.

    Args:
        keep: budget, a fraction of the cells (float), a count (int) or "8/frame". Default: 0.25.
        within: "video" (default) or "frame", which keeps at least one token per frame.
    """

    paper = "Token Merging, arXiv 2210.09461, section 5 (video); the shifted halves are ours"
    license = "written from the paper; the reference code is CC BY-NC 4.0"
    cost = "O(N^2 C / 4) over the video, or O(N n C / 4) with n tokens per frame"

    def __init__(self, keep: float | int | str = 0.25, *, within: str = "video") -> None:
        super().__init__()
        self.set_budget(keep)
        if within not in ("video", "frame"):
            raise ValueError(f"tome_video: within must be 'video' or 'frame', got {within!r}")
        self.within = within

    def min_count(self, grid: Grid) -> int:
        return grid.T if self.within == "frame" else 1

    def plan(self, tokens: Tokens, **cues: Any) -> Plan:
        if self.within == "video":
            shifted = _shift_odd_frames(tokens)
            return shifted.then(merge_to(tokens.apply(shifted), self.counts(tokens), self.planned_counts(tokens)))
        frame = tokens.frame.masked_fill(~tokens.mask, -1)
        return merge_within(tokens, frame, allocate(self.counts(tokens), group_count(frame, tokens.grid.T)))


def _shift_odd_frames(tokens: Tokens) -> Plan:
    """The order in which tokens of odd frames are shifted by one position, if frames have an even number of cells."""
    n = tokens.grid.cells_per_frame
    shift = (tokens.frame % 2) * (n % 2 == 0)
    key: Tensor = tokens.frame * n + (tokens.cell % n + shift) % n
    order = key.masked_fill(~tokens.mask, tokens.grid.cells).argsort(dim=1, stable=True)
    dest = order.argsort(dim=1).masked_fill(~tokens.mask, -1)
    return Plan(tokens.count, tokens.N, dest, order)
