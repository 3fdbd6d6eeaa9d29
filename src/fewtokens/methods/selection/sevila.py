"""SeViLA's frames: the few that a video language model finds sufficient to answer the question."""

from __future__ import annotations

from fewtokens.core.selection import Candidates, FrameSelector, Selection, full_size
from fewtokens.methods.ops.frames import ranked


class Sevila(FrameSelector):
    """Selects the most relevant of a few evenly spaced frames, in the order of time.

    The localizer of SeViLA (arXiv 2305.06988), its selection: the scorer is meant to be the video language model itself
    (`scorer="model"`, see `fewtokens.llm.ModelScorer`), which then answers from these frames; any other one works too.
    SeViLA ranks by the logit of "yes", which is not comparable between frames; that scorer relates it to "no". Equal
    scores are resolved evenly over the video. `fewtokens train video-llm --objective sevila` trains the localizer by
    the answers of the answerer.

    Args:
        keep: number of frames (int), or fraction of the candidates (float). Default: 4, as published.
        frames: number of candidates, evenly spaced. Default: 32, as published.
    """

    paper = "localizer of Self-Chained Image-Language Model for Video Localization and QA, arXiv 2305.06988"
    license = "written from the paper and a description of its code; license of the code not checked"
    cost = "O(T log T), and the scorer on each candidate"

    def __init__(self, keep: float | int = 4, *, frames: int = 32) -> None:
        if frames < 1:
            raise ValueError(f"sevila: frames must be at least 1, got {frames}")
        self.set_budget(keep)
        if keep > frames:
            raise ValueError(f"sevila: keep must be at most the number of candidates, got {keep} of {frames} frames")
        self.frames = frames

    @property
    def needs(self) -> tuple[str, ...]:
        return ("relevance",)

    def max_candidates(self, seconds: float) -> int:
        return self.frames

    def choose(self, candidates: Candidates) -> Selection:
        return full_size(ranked(candidates.relevance)[: candidates.count], scores=candidates.relevance)
