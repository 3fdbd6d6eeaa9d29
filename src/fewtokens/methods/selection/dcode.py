"""D-CoDe's frames: evenly spaced ones, completed by those that are the least similar to them."""

from __future__ import annotations

from fewtokens.core.selection import Candidates, FrameSelector, Selection, evenly_spaced, full_size
from fewtokens.methods.ops.frames import add_least_similar


class Dcode(FrameSelector):
    """Selects evenly spaced frames, and completes them greedily by the frame least similar on average to all of them.

    D-CoDe, its selection of frames: a share `alpha` of the budget, rounded down but at least one
    frame, is evenly spaced from the first to the last candidate.

    Args:
        keep: number of frames (int), or fraction of the candidates (float). Default: 15, as published.
        alpha: share of evenly spaced frames. Default: 0.85, as published.
        rate: candidates per second, "keyframes" of the codec, or "all" frames. Default: 1.
    """

    paper = (
        "D-CoDe: Scaling Image-Pretrained VLMs to Video via Dynamic Compression and Question Decomposition, EMNLP 2025"
    )
    license = "written from the paper and a description of its code; reference code Apache-2.0"
    cost = "O(K T C), and a thumbnail per candidate"

    def __init__(self, keep: float | int = 15, *, alpha: float = 0.85, rate: float | str = 1.0) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"dcode: alpha must be in 0..1, got {alpha}")
        self.set_budget(keep, rate)
        self.alpha = alpha

    @property
    def needs(self) -> tuple[str, ...]:
        return ("features",)

    def choose(self, candidates: Candidates) -> Selection:
        even = evenly_spaced(len(candidates), max(1, int(self.alpha * candidates.count + 1e-6)))
        order = add_least_similar(candidates.features, even, candidates.count, "mean")
        return full_size(order, even=even)
