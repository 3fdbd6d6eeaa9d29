"""TimeMarker's sampling: the longer the video, the lower the rate and the smaller the frames."""

from __future__ import annotations

import math

import torch

from fewtokens.core.selection import Candidates, FrameSelector, Selection, evenly_spaced
from fewtokens.methods.ops.frames import near_square


class Timemarker(FrameSelector):
    """Selects evenly spaced frames of a video of any length, with a constant total number of tokens.

    TimeMarker (arXiv 2411.18211), AnyLength, as one rule: twice as many frames as seconds, rounded up, at most `most`;
    each frame has an equal part of the `tokens`, as a nearly square grid of at most the full frame. The paper states
    that the rate falls with the duration and the tokens of a frame with the number of frames, but not the rule. Its
    text with the time before each frame belongs to the prompt.

    Args:
        most: maximum number of frames. Default: 128.
        tokens: total number of tokens. Default: 4608, ours.
        grid: rows and columns of cells of a full frame. Default: 24, ours.
    """

    sizes = True
    paper = "variant of TimeMarker: A Versatile Video-LLM for Long and Short Video Understanding, arXiv 2411.18211"
    license = "written from the abstract; reference code Apache-2.0"
    cost = "O(K); no thumbnails"

    def __init__(self, most: int = 128, *, tokens: int = 4608, grid: int = 24) -> None:
        if grid < 1 or most < 1 or tokens < most:
            raise ValueError(
                "timemarker: most and grid must be at least 1, and tokens at least most, "
                f"got {most}, {grid} and {tokens}"
            )
        self.set_budget(most)
        self.most, self.tokens, self.grid = most, tokens, grid

    def choose(self, candidates: Candidates) -> Selection:
        requested = math.ceil(2 * candidates.duration - 1e-6)
        count = max(1, min(requested, self.most, len(candidates)))
        cells = near_square(torch.full((count,), min(self.tokens // count, self.grid**2)))
        return Selection(evenly_spaced(len(candidates), count), cells.double() / self.grid)
