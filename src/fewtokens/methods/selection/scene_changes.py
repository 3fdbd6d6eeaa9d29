"""One frame per scene, with scenes cut by SceneTilling."""

from __future__ import annotations

import heapq
from itertools import pairwise

import torch

from fewtokens.core.selection import Candidates, FrameSelector, Selection, full_size
from fewtokens.methods.ops.scene_tilling import scene_cuts, tilling_depth


class SceneChanges(FrameSelector):
    """Cuts the video into scenes where neighboring frames differ most, and selects the middle frame of each.

    SceneTilling (VideoLLaMB, arXiv 2409.01071): a cut is where the similarity of neighboring frames is far below its
    peaks on both sides: deeper than the mean depth plus half its standard deviation, as published. A budget of K frames
    replaces the threshold: the K - 1 deepest cuts; if there are fewer, the longest scenes are halved.

    Args:
        keep: number of frames (int), or fraction of the candidates (float). Default: one frame per scene.
        rate: candidates per second, "keyframes" of the codec, or "all" frames. Default: 1.
    """

    paper = "SceneTilling of VideoLLaMB, arXiv 2409.01071"
    license = "written from the paper and a description of its code; reference code without license"
    cost = "O(T C), and a thumbnail per candidate"

    def __init__(self, keep: float | int | None = None, *, rate: float | str = 1.0) -> None:
        self.set_budget(1 if keep is None else keep, rate)
        self.keep = keep  # type: ignore[assignment]

    @property
    def needs(self) -> tuple[str, ...]:
        return ("features",)

    def num_frames(self, candidates: int) -> int:
        return 1 if self.keep is None else super().num_frames(candidates)

    def choose(self, candidates: Candidates) -> Selection:
        T, features = len(candidates), candidates.features
        similarity = (features[1:] * features[:-1]).sum(1)
        if self.keep is None:
            cuts = scene_cuts(similarity)
        else:
            depth = tilling_depth(similarity)
            cuts = scene_cuts(similarity, count=min(candidates.count - 1, int((depth > 0).sum())))
        bounds = [0, *(cuts + 1).tolist(), T]
        scenes = [(start - end, start, end) for start, end in pairwise(bounds)]
        heapq.heapify(scenes)
        while self.keep is not None and len(scenes) < candidates.count:
            _, start, end = heapq.heappop(scenes)
            middle = (start + end) // 2
            for part in ((start, middle), (middle, end)):
                heapq.heappush(scenes, (part[0] - part[1], *part))
        index = torch.tensor([(start + end - 1) // 2 for _, start, end in scenes])
        return full_size(index, similarity=similarity, cuts=cuts)
