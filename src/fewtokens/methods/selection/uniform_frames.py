"""Evenly spaced frames: what every video language model reads by default."""

from __future__ import annotations

from fewtokens.core.selection import Candidates, FrameSelector, Selection, evenly_spaced, full_size


class UniformFrames(FrameSelector):
    """Selects evenly spaced frames, from the first to the last, as `fewtokens.read(frames=)`.

    Args:
        keep: number of frames (int), or fraction of all frames (float). Default: 32.
    """

    paper = "baseline"
    license = "none needed"
    cost = "O(K); no thumbnails"

    def __init__(self, keep: float | int = 32) -> None:
        self.set_budget(keep)

    def choose(self, candidates: Candidates) -> Selection:
        return full_size(evenly_spaced(len(candidates), candidates.count))
