"""Adaptive keyframe sampling: relevant frames that still cover the video."""

from __future__ import annotations

import torch
from torch import Tensor

from fewtokens.core.selection import Candidates, FrameSelector, Selection, full_size
from fewtokens.methods.ops.frames import fill_up, min_max, ranked


class Aks(FrameSelector):
    """Selects the most relevant frames of parts of the video, which it halves until one of them stands out.

    Adaptive Keyframe Sampling (arXiv 2502.21271). Scores are scaled to 0..1. A part is halved unless the mean of its
    top n scores exceeds the mean of all by `tau`, at most `depth` times; a part at depth d selects its top K / 2^d
    frames. Differences from the published code: n is compared as published (K), or is the number of frames that a part
    would select ("leaf_quota", ours); the frames that K / 2^d loses by rounding go to the parts with the best scores,
    so that K frames are selected (the code selects none for K=2 at depth 3); equal scores count as 0, not 0 / 0, and
    are resolved evenly over the video.

    With the published n, nearly every video is halved to full depth, so that the selection is the best frames of 32
    equal parts: it covers the video, but answers in one short part get few frames.

    Args:
        keep: number of frames (int), or fraction of the candidates (float). Default: 32.
        tau: a part whose top scores exceed the mean by more is not halved. Default: 0.8, as published.
        depth: maximum number of halvings. Default: 5, as published.
        stop_top: n, "keep" (default, as published) or "leaf_quota".
        rate: candidates per second, "keyframes" of the codec, or "all" frames. Default: 1, as published.
    """

    paper = "Adaptive Keyframe Sampling for Long Video Understanding, arXiv 2502.21271"
    license = "written from the paper and a description of its code; reference code without license"
    cost = "O(T log T), and the scorer on each candidate"

    def __init__(
        self,
        keep: float | int = 32,
        *,
        tau: float = 0.8,
        depth: int = 5,
        stop_top: str = "keep",
        rate: float | str = 1.0,
    ) -> None:
        if not 0 <= depth <= 20:
            raise ValueError(f"aks: depth must be in 0..20, got {depth}")
        if stop_top not in ("keep", "leaf_quota"):
            raise ValueError(f"aks: stop_top must be 'keep' or 'leaf_quota', got {stop_top!r}")
        self.set_budget(keep, rate)
        self.tau, self.depth, self.stop_top = tau, depth, stop_top

    @property
    def needs(self) -> tuple[str, ...]:
        return ("relevance",)

    def choose(self, candidates: Candidates) -> Selection:
        scores, K = min_max(candidates.relevance), candidates.count
        parts = self._split(scores, K)
        sizes = torch.tensor([end - start for start, end, _ in parts])
        quota = torch.tensor([K >> depth for _, _, depth in parts])
        best = torch.stack([scores[start:end].max() for start, end, _ in parts])
        quota = fill_up(quota, sizes, K, ranked(best))
        selected = [
            start + ranked(scores[start:end])[:count]
            for (start, end, _), count in zip(parts, quota.tolist(), strict=True)
        ]
        return full_size(torch.cat(selected), scores=scores, parts=[part[:2] for part in parts])

    def _split(self, scores: Tensor, K: int) -> list[tuple[int, int, int]]:
        """Returns the start, end and depth of the parts."""
        parts = [(0, len(scores), 0)]
        for depth in range(self.depth):
            top = K if self.stop_top == "keep" else max(1, K >> depth)
            halved = []
            for start, end, at in parts:
                part = scores[start:end]
                stands_out = part.topk(min(top, len(part))).values.mean() - part.mean() > self.tau
                if at < depth or len(part) < 2 or stands_out:
                    halved.append((start, end, at))
                else:
                    middle = start + len(part) // 2
                    halved += [(start, middle, depth + 1), (middle, end, depth + 1)]
            parts = halved
        return parts
