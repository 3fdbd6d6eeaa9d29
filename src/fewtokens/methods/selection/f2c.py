"""Key clips instead of key frames: short clips around relevant frames, the longer the smaller."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.selection import Candidates, FrameSelector, Selection
from fewtokens.methods.ops.frames import min_max, ranked
from fewtokens.methods.ops.seeded import uniform_hash
from fewtokens.methods.ops.spherical import kmeans_plus_plus, lloyd

_LENGTHS = (1, 2, 4, 8, 16)
# Weights of redundancy and of coverage in the choice of a length.
_REDUNDANCY, _COVERAGE = 0.5, 0.1


class F2c(FrameSelector):
    """Selects short clips around the most relevant frames; a longer clip has smaller frames.

    From Frames to Clips (arXiv 2510.02262), a variant. Anchors are the local maxima of relevance; if there are more
    than `anchors`, the frames at these are clustered, and the best of each cluster remains. Anchors share the budget of
    K full frames equally: a clip of l frames at side 1/s costs l / s^2. The length is the one of 1, 2, 4, 8, 16 with
    the highest mean relevance - 0.5 mean cosine between its frames + 0.1 log l, with relevance scaled to 0..1. Frames
    in two clips are read once, at the larger size; what that and clips shorter than their share leave goes to the clip
    of the best anchor, up to full size.

    Published only in words: the objective, its weights and the lengths are ours, and clips consist of consecutive
    candidates, where the paper reads them at the rate of the video; raise `rate` for denser clips.

    Args:
        keep: budget in full frames (int), or as a fraction of the candidates (float). Default: 8.
        anchors: maximum number of clips, at most the budget. Default: 8.
        rate: candidates per second, "keyframes" of the codec, or "all" frames. Default: 1, as published.
    """

    sizes = True
    paper = "variant of From Frames to Clips, arXiv 2510.02262"
    license = "written from the abstract; no code"
    cost = "O(T C), a thumbnail and the scorer on each candidate"

    def __init__(self, keep: float | int = 8, *, anchors: int = 8, rate: float | str = 1.0) -> None:
        if anchors < 1:
            raise ValueError(f"f2c: anchors must be at least 1, got {anchors}")
        self.set_budget(keep, rate)
        self.anchors = anchors

    @property
    def needs(self) -> tuple[str, ...]:
        return ("relevance", "features")

    def choose(self, candidates: Candidates) -> Selection:
        K, T = candidates.count, len(candidates)
        if T <= K:
            return Selection(torch.arange(T), torch.ones(T, 2, dtype=torch.float64))
        scores = min_max(candidates.relevance)
        anchors = self._anchors(scores, candidates.features, min(self.anchors, K))
        share = K / len(anchors)
        starts, lengths = _clips(scores, candidates.features, anchors)
        area = torch.zeros(T, dtype=torch.float64)
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            clip = area[start : start + length]
            clip.clamp_(min=min(1.0, share / length))
        best = slice(int(starts[0]), int(starts[0] + lengths[0]))
        area[best] = _grow(area[best], K - float(area.sum()))
        index = area.nonzero().squeeze(1)
        scale = area[index].sqrt()[:, None].expand(-1, 2).clone()
        return Selection(index, scale, {"scores": scores, "anchors": anchors, "lengths": lengths})

    def _anchors(self, scores: Tensor, features: Tensor, most: int) -> Tensor:
        """The frames around which clips are placed, int64 [A], best first."""
        peaks = local_maxima(scores)
        if len(peaks) > most:
            x = features[peaks][None]
            real, k = torch.ones(1, len(peaks), dtype=torch.bool), torch.tensor([most])
            uniforms = uniform_hash(0, (most + 32) * 4).view(-1, 4)
            seeds = kmeans_plus_plus(x, real, k, most, uniforms)
            _, fit = lloyd(x, real, seeds.centroids, k, 20, 1e-4)
            order = ranked(scores[peaks])
            labels = fit.labels[0][order]
            # The first of each cluster in descending order of relevance.
            first = torch.tensor([int((labels == label).nonzero()[0]) for label in labels.unique()])
            peaks = peaks[order[first]]
        return peaks[scores[peaks].argsort(descending=True, stable=True)]


def local_maxima(scores: Tensor) -> Tensor:
    """Returns the local maxima of scores [T], the middle of each plateau; the basins of the watershed of -scores."""
    values, counts = scores.unique_consecutive(return_counts=True)
    low = torch.full((1,), -torch.inf)
    before, after = torch.cat([low, values[:-1]]), torch.cat([values[1:], low])
    ends = counts.cumsum(0)
    return (ends - 1 - counts // 2)[(values > before) & (values > after)]


def _clips(scores: Tensor, features: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """The start and the length of the clip of each anchor, int64 [A]."""
    T = len(scores)
    lengths = torch.tensor([length for length in _LENGTHS if length <= T])
    starts = (anchors[:, None] - lengths // 2).clamp(min=0).minimum(T - lengths)
    ends = starts + lengths
    relevance = F.pad(scores.double().cumsum(0), (1, 0))
    sums = F.pad(features.double().cumsum(0), (0, 0, 1, 0))
    mean = (relevance[ends] - relevance[starts]) / lengths
    # The mean over pairs of different unit vectors, from the length of their sum.
    square = (sums[ends] - sums[starts]).square().sum(2)
    own = F.pad(features.double().square().sum(1).cumsum(0), (1, 0))
    redundancy = (square - (own[ends] - own[starts])) / (lengths * (lengths - 1)).clamp(min=1)
    choice = (mean - _REDUNDANCY * redundancy + _COVERAGE * lengths.log()).argmax(1)
    return starts.gather(1, choice[:, None]).squeeze(1), lengths[choice]


def _grow(area: Tensor, rest: float) -> Tensor:
    """Raises the areas of the frames of a clip together, by at most `rest` in all and to at most 1 each."""
    for _ in range(len(area)):
        room = area < 1
        if rest <= 0 or not bool(room.any()):
            break
        step = torch.where(room, torch.minimum(1 - area, torch.full_like(area, rest / int(room.sum()))), 0)
        area, rest = area + step, rest - float(step.sum())
    return area
