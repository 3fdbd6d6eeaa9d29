"""ToMe on the tokens of a video: within each frame, or over all of it with halves that mix in time."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.bipartite import merge_to
from fewtokens.methods.ops.groups import merge_within, share_out, sizes_of


class TomeVideo(Reducer):
    """Merges the most similar tokens pairwise, within each frame or across all of them.

    ToMe (arXiv 2210.09461) as video pipelines use it after the encoder. "frame": each frame meets its share of the
    budget by itself. "video": all tokens are matched; unlike in `tome`, odd frames are shifted by a place before tokens
    are dealt to the two halves in turn, so that equal places of neighbouring frames lie in opposite halves and can
    merge in the first step. (Inside an encoder that sees one frame at a time, "frame" is `tome_in_encoder`.)

    Args:
        keep: share of the cells (float) or count (int).
        within: "video" or "frame"; of a frame at least one token stays.
    """

    paper = "Token Merging, arXiv 2210.09461, section 5 (video); the shifted halves are ours"
    license = "written from the paper; the reference code is CC BY-NC 4.0"
    cost = "O(N^2 C / 4) over the video, or O(N n C / 4) with n tokens of a frame"

    def __init__(self, keep: float | int | str = 0.25, *, within: str = "video") -> None:
        super().__init__()
        self.take_budget(keep)
        if within not in ("video", "frame"):
            raise ValueError(f"tome_video merges within 'video' or 'frame', not {within!r}")
        self.within = within

    def fewest(self, grid: Grid) -> int:
        return grid.T if self.within == "frame" else 1

    def plan(self, tokens: Tokens, **cues: Any) -> Plan:
        if self.within == "video":
            shifted = _shifted(tokens)
            return shifted.then(merge_to(tokens.apply(shifted), self.counts(tokens), self.planned(tokens)))
        frame = tokens.frame.masked_fill(~tokens.mask, -1)
        return merge_within(tokens, frame, share_out(self.counts(tokens), sizes_of(frame, tokens.grid.T)))


def _shifted(tokens: Tokens) -> Plan:
    """A new order in which the tokens of odd frames are moved on by one place where frames have an even number."""
    n = tokens.grid.cells_per_frame
    shift = (tokens.frame % 2) * (n % 2 == 0)
    key: Tensor = tokens.frame * n + (tokens.cell % n + shift) % n
    order = key.masked_fill(~tokens.mask, tokens.grid.cells).argsort(dim=1, stable=True)
    dest = order.argsort(dim=1).masked_fill(~tokens.mask, -1)
    return Plan(tokens.count, tokens.N, dest, order)
