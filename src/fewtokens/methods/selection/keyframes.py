"""The keyframes of the codec, which can be decoded alone."""

from __future__ import annotations

from fewtokens.core.selection import Candidates, FrameSelector, Selection, evenly_spaced, full_size


class Keyframes(FrameSelector):
    """Selects keyframes of the codec, evenly spaced if there are more than the budget.

    A keyframe is decoded without any other frame, so this is the cheapest way to read a long video. Encoders insert
    keyframes at a fixed interval, and most also at cuts. Of a source without an index of keyframes (an array, a folder
    of images), the candidates are one frame per second.

    Args:
        keep: number of frames (int), or fraction of the keyframes (float). Default: 32.
    """

    paper = "baseline"
    license = "none needed"
    cost = "O(K); no thumbnails, and no other frame is decoded"

    def __init__(self, keep: float | int = 32) -> None:
        self.set_budget(keep, "keyframes")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("keyframes",)

    def choose(self, candidates: Candidates) -> Selection:
        return full_size(evenly_spaced(len(candidates), candidates.count))
