"""Random frames, the baseline of every selector."""

from __future__ import annotations

import torch

from fewtokens.core.selection import Candidates, FrameSelector, Selection, full_size
from fewtokens.methods.ops.seeded import uniform_hash


class RandomFrames(FrameSelector):
    """Selects random frames, each with equal probability.

    Args:
        keep: number of frames (int), or fraction of all frames (float). Default: 32.
        seed: random seed, if `select` receives no generator. Default: 0.
    """

    paper = "baseline"
    license = "none needed"
    cost = "O(T log T); no thumbnails"

    def __init__(self, keep: float | int = 32, *, seed: int = 0) -> None:
        self.set_budget(keep)
        self.seed = seed

    def choose(self, candidates: Candidates) -> Selection:
        if candidates.generator is not None:
            numbers = torch.rand(len(candidates), generator=candidates.generator)
        else:
            numbers = uniform_hash(self.seed, len(candidates))
        return full_size(numbers.argsort(stable=True)[: candidates.count])
