"""Diverse frames: the ones that are farthest apart."""

from __future__ import annotations

from fewtokens.core.selection import Candidates, FrameSelector, Selection, full_size
from fewtokens.methods.ops.frames import add_least_similar


class MaxMinFrames(FrameSelector):
    """Selects diverse frames: greedily the one that is least similar to all frames selected so far.

    The greedy solution of the max-min diversity problem by cosine similarity, at most twice as close as the optimum in
    a metric space (Gonzalez, 1985). The first frame is the one least similar to the mean of the video.

    Args:
        keep: number of frames (int), or fraction of the candidates (float). Default: 32.
        rate: candidates per second, "keyframes" of the codec, or "all" frames. Default: 1.
    """

    paper = "baseline"
    license = "none needed"
    cost = "O(K T C), and a thumbnail per candidate"

    def __init__(self, keep: float | int = 32, *, rate: float | str = 1.0) -> None:
        self.set_budget(keep, rate)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("features",)

    def choose(self, candidates: Candidates) -> Selection:
        features = candidates.features
        first = (features @ features.mean(0)).argmin()
        order = add_least_similar(features, first[None], candidates.count, "max")
        return full_size(order, order=order)
