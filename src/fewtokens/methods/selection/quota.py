"""QuoTA: tokens for each frame in proportion to the square of its relevance."""

from __future__ import annotations

import torch
from torch import Tensor

from fewtokens.core.selection import Candidates, FrameSelector, Selection
from fewtokens.methods.ops.frames import near_square, share_out


class Quota(FrameSelector):
    """Reads all candidates, each with as many tokens as its relevance deserves.

    QuoTA (arXiv 2503.08689), its allocation. A budget of tokens is shared in proportion to the square of the relevance,
    at most a full frame each; what exceeds that goes to the other frames (the published code has no such cap where it
    resizes, and enlarges frames above the resolution of the encoder). Each share becomes a nearly square grid. Frames
    are read at these sizes; a frame has at least one token. Negative relevance, as cosines can be, counts as 0.

    Differences: the scorer is any scorer; the paper prompts a video language model for the probability of "yes", as
    the scorer "model" of a session does, and derives a list of objects from the question first.

    Args:
        tokens: the total number of tokens, at least one per candidate. Default: 12544, as published (64 x 196).
        grid: rows and columns of cells of a full frame, to which the budget refers. Default: 27, as published.
        frames: number of candidates, evenly spaced; 64 more for each hour of video. Default: 96, as published.
    """

    sizes = True
    paper = "QuoTA: Query-oriented Token Assignment via CoT Query Decouple, arXiv 2503.08689"
    license = "written from the paper and a description of its code; reference code without license"
    cost = "O(T), and the scorer on each candidate"

    def __init__(self, tokens: int = 12544, *, grid: int = 27, frames: int = 96) -> None:
        if min(tokens, grid, frames) < 1:
            raise ValueError(f"quota: tokens, grid and frames must be at least 1, got {tokens}, {grid} and {frames}")
        if tokens < frames:
            raise ValueError(f"quota: tokens must be at least one per frame, got {tokens} for {frames} frames")
        self.set_budget(frames)
        self.tokens, self.grid, self.frames = tokens, grid, frames

    @property
    def needs(self) -> tuple[str, ...]:
        return ("relevance",)

    def max_candidates(self, seconds: float) -> int:
        return min(self.tokens, self.frames + int(64 * seconds / 3600))

    def choose(self, candidates: Candidates) -> Selection:
        T, full = len(candidates), self.grid**2
        if self.tokens < T:
            raise ValueError(f"quota: {self.tokens} tokens are fewer than the {T} candidates; pass fewer frames")
        weight = candidates.relevance.double().clamp(min=0).square()
        share, least = _whole(share_out(weight, self.tokens, full)), torch.zeros(T, dtype=torch.bool)
        # The one token that a frame has at least is taken from the others.
        while bool((share < 1).any()):
            least |= share < 1
            rest = share_out(torch.where(least, 0, weight), self.tokens - int(least.sum()), full)
            share = torch.where(least, 1, _whole(rest))
        grids = near_square(share.long())
        return Selection(torch.arange(T), grids.double() / self.grid, {"scores": candidates.relevance, "shares": share})


def _whole(share: Tensor) -> Tensor:
    """Rounds shares down; those that are whole but for the rounding of floats stay."""
    return (share + 1e-6).floor()
