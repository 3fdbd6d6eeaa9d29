"""INTP's frames: several interleaved subsets of the number of frames that an encoder accepts."""

from __future__ import annotations

import torch

from fewtokens.core.selection import Candidates, FrameSelector, Selection, evenly_spaced, full_size


class Intp(FrameSelector):
    """Selects evenly spaced frames, and states in which of several interleaved subsets each is encoded.

    INTP (arXiv 2409.12963), for video encoders with a fixed number of frames: subset i of m contains the frames i,
    i + m, i + 2m, ...; each spans the whole video. `Selection.why["subset"]` has the subset of each frame;
    `fewtokens.methods.ops.interleave` splits frames, and merges the features of the subsets in the order of time. An
    encoder that processes frames independently returns the same with and without subsets. Its compression of the cache
    of the language model is not implemented.

    Args:
        subsets: m, number of subsets. Default: 2.
        frames: number of frames that the encoder accepts. Default: 8, as in Video-LLaVA.
    """

    always = True
    paper = "Interpolating Video-LLMs: Toward Longer-sequence LMMs in a Training-free Manner, arXiv 2409.12963"
    license = "written from the abstract; no code"
    cost = "O(K); no thumbnails"

    def __init__(self, subsets: int = 2, *, frames: int = 8) -> None:
        if subsets < 1 or frames < 1:
            raise ValueError(f"intp: subsets and frames must be at least 1, got {subsets} and {frames}")
        self.set_budget(subsets * frames)
        self.subsets, self.frames = subsets, frames

    def choose(self, candidates: Candidates) -> Selection:
        subset = torch.arange(candidates.count) % self.subsets
        return full_size(evenly_spaced(len(candidates), candidates.count), subset=subset)
