"""Koala's frames: segments of evenly spaced frames, and the key frames of the whole video among them."""

from __future__ import annotations

import torch

from fewtokens.core.selection import Candidates, FrameSelector, Selection, evenly_spaced, full_size


class Koala(FrameSelector):
    """Selects evenly spaced frames in segments, and states which of them are the key frames of the whole video.

    Koala (arXiv 2404.04346), its sampling: a video Q-Former reads segments of consecutive frames, and its output for
    a few key frames, evenly spaced over the whole video, as additional queries of each segment.
    `Selection.why["segment"]` has the segment of each frame, and `why["key"]` the places of the key frames among those
    selected. The published code reads the key frames separately and rounds down; here they are frames of the segments,
    so that none is decoded twice. A video with no more frames than that has neither. The Q-Former is not included.

    Args:
        segments: number of segments. Default: 4, as published.
        frames: number of frames in a segment, and of key frames. Default: 16, as published.
    """

    paper = "sampling of Koala: Key frame-conditioned long video-LLM, arXiv 2404.04346"
    license = "own code; the sampling is that of the authors' evaluation code, whose license was not checked"
    cost = "O(K); no thumbnails"

    def __init__(self, segments: int = 4, *, frames: int = 16) -> None:
        if segments < 1 or frames < 1:
            raise ValueError(f"koala: segments and frames must be at least 1, got {segments} and {frames}")
        self.set_budget(segments * frames)
        self.segments, self.frames = segments, frames

    def choose(self, candidates: Candidates) -> Selection:
        segment = torch.arange(candidates.count) // self.frames
        key = evenly_spaced(candidates.count, self.frames)
        return full_size(evenly_spaced(len(candidates), candidates.count), segment=segment, key=key)
