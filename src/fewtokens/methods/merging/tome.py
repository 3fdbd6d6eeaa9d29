"""Token Merging (ToMe) on the features of a video, arXiv 2210.09461."""

from __future__ import annotations

from typing import Any

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.bipartite import merge_to
from fewtokens.methods.ops.groups import WINDOW_FRAMES, check_window, frame_windows, merge_within


class Tome(Reducer):
    """Merges the most similar tokens of a video pairwise, weighted by size.

    A variant of Token Merging (arXiv 2210.09461), which works inside the encoder; see `tome_in_encoder`. All tokens of
    the video are matched on their features (bipartite matching), and at most half of them merge per step, until the
    budget is met. The two halves alternate in raster order; if a frame has an even number of cells, the same position
    of all frames is in one half and merges from the second step on.

    It takes 3 % of the time of a ViT-S/14 for the same frames (32 of 14x14 tokens), since each half of the tokens is
    compared with the other.

    Args:
        keep: budget, a fraction of the cells (float), a count (int) or "8/frame". Default: 0.25.
        window: a video of more frames is split into windows of this many, each with its part of the budget, so that
            time is linear in the number of frames; None to match the tokens of any video at once. Default: 128.
    """

    paper = "Token Merging: Your ViT But Faster, arXiv 2210.09461"
    license = "written from the paper; the reference code is CC BY-NC 4.0"
    cost = "O(N m C / 4) for the first step with m tokens per window, in blocks of bounded memory"

    def __init__(self, keep: float | int | str = 0.25, *, window: int | None = WINDOW_FRAMES) -> None:
        super().__init__()
        self.set_budget(keep)
        check_window(window)
        self.window = window

    def plan(self, tokens: Tokens, **cues: Any) -> Plan:
        counts = self.counts(tokens)
        windows = frame_windows(tokens, counts, self.window)
        return (
            merge_to(tokens, counts, self.planned_counts(tokens)) if windows is None else merge_within(tokens, *windows)
        )
