"""SceneTilling: cuts a video into scenes where neighboring frames differ more than those around them.

VideoLLaMB (arXiv 2409.01071), after TextTiling. The depth of a pair of frames is how far one climbs from its
similarity to the nearest peaks on both sides; deep valleys are cuts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def tilling_depth(similarity: Tensor, *, left_only: bool = False) -> Tensor:
    """Returns the depth of each pair of neighboring frames: (left peak - s) + (right peak - s).

    A peak is the value at which the climb from s ends, that is before the first lower value.

    Args:
        similarity: float [...,n], similarity of frames i and i+1.
        left_only: leave the right climb out.

    Returns:
        [...,n] in the dtype of `similarity`, at least 0.
    """
    left = _left_peak(similarity) - similarity
    return left if left_only else left + _left_peak(similarity.flip(-1)).flip(-1) - similarity


def _left_peak(values: Tensor) -> Tensor:
    """The value at which the climb to the left from each value ends."""
    index = torch.arange(values.shape[-1], device=values.device).expand(values.shape)
    starts = torch.ones_like(values, dtype=torch.bool)
    starts[..., 1:] = values[..., 1:] > values[..., :-1]
    return values.gather(-1, index.where(starts, 0).cummax(-1).values)


def scene_cuts(
    similarity: Tensor,
    *,
    alpha: float = 0.5,
    count: int | None = None,
    limit: int | None = None,
    left_only: bool = False,
) -> Tensor:
    """Returns the last frame of each scene except the last one, for a whole video.

    Args:
        similarity: float [T-1], similarity of frames i and i+1.
        alpha: a cut is deeper than the mean plus `alpha` times the standard deviation (unbiased) of all depths.
        count: if given, the `count` deepest pairs are cuts instead; earlier ones win ties.
        limit: maximum number of cuts, the deepest. VideoLLaMB has 15. Default: none.
        left_only: see `tilling_depth`.

    Returns:
        int64 [K], ascending.
    """
    depth = tilling_depth(similarity, left_only=left_only)
    if count is None:
        spread = depth.std() if len(depth) > 1 else depth.new_zeros(())
        candidates = (depth > depth.mean() + alpha * spread).nonzero().squeeze(1)
        count = limit
    else:
        candidates = torch.arange(len(depth), device=depth.device)
    order = depth[candidates].argsort(descending=True, stable=True)[:count]
    return candidates[order].sort().values


class SceneStream:
    """SceneTilling of an endless stream in constant memory; no cut depends on later frames.

        scenes = SceneStream()
        cuts = [cut for s in similarities if (cut := scenes.push(s)) is not None]

    The threshold is that of `scene_cuts` over the depths known so far (the published "streaming" variant takes mean and
    standard deviation of the full video). Only the bottom of a valley can be a cut: on a slow fade, pairs next to it
    are not cuts too. It is one as soon as the climb after it exceeds the threshold, so the delay is at least one pair
    and at most the length of that climb. The first `warm_up` pairs only fill the statistics.

    Args:
        alpha: see `scene_cuts`.
        warm_up: number of depths to know before the first cut.
        numbers: the value of `numbers` of a stream that this one continues. Default: a new stream.
    """

    #: The length of `numbers`.
    SIZE = 12

    def __init__(self, alpha: float = 0.5, *, warm_up: int = 16, numbers: Sequence[float] | None = None) -> None:
        self.alpha, self.warm_up = alpha, warm_up
        #: The state as 12 numbers: count, mean and squared deviations of the known depths; the same of left peak
        #: minus 2 s over the current climb; the last value and its left peak; left peak minus 2 s and index of the
        #: valley, and whether it is a cut; number of pairs.
        self.numbers = [0.0] * self.SIZE if numbers is None else list(numbers)

    def push(self, similarity: float) -> int | None:
        """Adds the similarity of the last frame and the next one.

        Returns:
            The index of a frame that is the last of its scene, if this pair reveals one, else None. Frames count from
            0; the index is that of an earlier frame.
        """
        count, mean, squares, climbing, climb_mean, climb_squares, last, peak, valley, index, cut, pairs = self.numbers
        if pairs and similarity < last:
            # The climb is over, so the depths of its pairs are known: their right peak is the last value.
            total, delta = count + climbing, climb_mean + last - mean
            mean += delta * climbing / total
            squares += climb_squares + delta**2 * count * climbing / total
            count, climbing, climb_mean, climb_squares = total, 0.0, 0.0, 0.0
        if not pairs or similarity > last:
            peak = similarity
        rise = peak - 2 * similarity
        if not climbing:
            valley, index, cut = rise, pairs, 0.0
        climbing += 1
        difference = rise - climb_mean
        climb_mean += difference / climbing
        climb_squares += difference * (rise - climb_mean)
        found = None
        if not cut and climbing > 1 and count >= max(2, self.warm_up):
            threshold = mean + self.alpha * math.sqrt(max(squares, 0.0) / (count - 1))
            if valley + similarity > threshold:
                cut, found = 1.0, int(index)
        self.numbers = [
            count, mean, squares, climbing, climb_mean, climb_squares, similarity, peak, valley, index, cut, pairs + 1,
        ]  # fmt: skip
        return found
