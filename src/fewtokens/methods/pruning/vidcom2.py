"""VidCom2: distinctive frames keep more tokens, and each frame keeps its most distinctive tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from fewtokens.core.budget import Budget
from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan, group_sum, take_rows, weighted_group_sum
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.segments import rank_within
from fewtokens.methods.ops.temporal import in_blocks

# Variances are summed over blocks of this many tokens, which stay in the cache.
_ROWS = 512
_WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)


class VidCom2(Reducer):
    """Keeps the tokens least similar to the mean of the video and of their frame.

    Video Compression Commander (arXiv 2505.14454), as served by vLLM. On the normalized half of the channels with the
    lowest variance, a token's similarity to a mean is a sum of five Gaussians of their distance; a frame's part of the
    budget grows with the softmax (temperature 0.01) of its tokens' mean dissimilarity to the video. A frame's count is
    rounded, at least one. The total is then corrected over all frames: the most similar survivors are dropped, or the
    least similar of the others are kept. If the budget is close to one token per frame, this can empty a frame. The
    authors' code keeps the rounded total, so its count depends on the video; here it is exact:
    max(one per frame, keep * cells).

    Args:
        keep: budget, a fraction of the cells (float), a count (int) or "8/frame". Default: 0.25.
        temperature: of the softmax over frames; larger is more even. Default: 0.01.
        q: vLLM's pruning rate in place of the budget, in [0, 1), to match the number of placeholders in vLLM:
            int(cells * (1 - q)), in double precision and rounded down. It can be one below keep=1-q: 59 of 6 x 50 cells
            at q = 0.8, since 1 - 0.8 is slightly less than 0.2, while keep=0.2 gives 60.
    """

    paper = "Video Compression Commander (VidCom2), arXiv 2505.14454; vLLM --video-pruning-method vidcom2"
    license = "written from the description; reference code Apache-2.0"
    cost = "O(NC)"

    def __init__(
        self, keep: float | int | str | None = None, *, temperature: float = 0.01, q: float | None = None
    ) -> None:
        super().__init__()
        self.set_budget(keep, default=0.25, q=q)
        if q is not None:
            self.budget = Budget.pruning(q, caller=self.name)
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.temperature, self.q = temperature, q

    def min_count(self, grid: Grid) -> int:
        return grid.T

    def plan(self, tokens: Tokens) -> Plan:
        T, frame = tokens.grid.T, tokens.frame.masked_fill(~tokens.mask, -1)
        real = tokens.mask[..., None].float()
        x = _low_variance_half(tokens.features.float(), tokens.mask)  # [B,N,C/2]
        # Inner products with the means replace distances from a normalized copy.
        norm = x.norm(dim=2)
        scale = 1 / norm.clamp(min=1e-12)
        count = group_sum(real, frame, T)  # [B,T,1]
        sums = weighted_group_sum(x, scale, frame, T)  # [B,T,C/2]
        video_mean = sums.sum(1) / real.sum(1)
        frame_mean = sums / count.clamp(min=1)
        frame_index = frame.clamp(min=0)
        with_video = (x @ video_mean[..., None])[..., 0]
        with_frame = in_blocks(lambda rows, index: (rows * take_rows(frame_mean, index)).sum(2), x, frame_index)
        length = (norm > 0).float()  # of the normalized token
        video_similarity = _similarity(length - 2 * scale * with_video + video_mean.square().sum(1, keepdim=True))
        frame_length = frame_mean.square().sum(2).gather(1, frame_index)
        similarity = video_similarity + _similarity(length - 2 * scale * with_frame + frame_length)
        # A frame's distinctiveness: the mean dissimilarity of its tokens to the video.
        dissimilarity = -group_sum(video_similarity[..., None] * real, frame, T) / count.clamp(min=1)  # [B,T,1]
        size = count[..., 0]
        nonempty = size > 0
        weight = (dissimilarity[..., 0] / self.temperature).masked_fill(~nonempty, -torch.inf).softmax(1)
        scale = self._kept_fraction(tokens) * (1 + weight - 1 / nonempty.sum(1, keepdim=True))
        frame_counts = (scale.clamp(max=1) * size).round().clamp(min=1).minimum(size)
        # Not `gather`, with which torch.compile for CPUs (2.13) lets all tokens survive.
        survives = rank_within(similarity, frame, T) < take_rows(frame_counts[..., None], frame_index)[..., 0]
        # The total is corrected over all frames: survivors rank first, each part ordered by similarity.
        order = similarity.argsort(dim=1, stable=True).argsort(dim=1)
        return Plan.top(-(order + tokens.N * ~survives), self.counts(tokens), tokens, num_slots=self.max_slots(tokens))

    def _kept_fraction(self, tokens: Tokens) -> Tensor:
        """The fraction of the current tokens that the frames' counts are rounded from, float32 [B,1]."""
        assert self.budget is not None
        amounts = [self.budget.amount(grid) for grid in tokens.grid.videos(tokens.B)]
        share = torch.tensor(amounts, dtype=torch.float64, device=tokens.device) / tokens.count
        return share.clamp(max=1).float()[:, None]


def _low_variance_half(x: Tensor, mask: Tensor) -> Tensor:
    """The half of the channels with the lowest variance over the video's tokens, [B,N,C/2].

    Args:
        x: float32 [B,N,C], zero in padded slots.
        mask: bool [B,N], True for real tokens.
    """
    real = mask[:, None].float()  # [B,1,N]; sums over rows are products with it
    mean = real @ x / real.sum(2, keepdim=True)
    variance = torch.zeros_like(mean)
    for rows, weight in zip(x.split(_ROWS, 1), real.split(_ROWS, 2), strict=True):
        variance += weight @ (rows - mean).square_()
    channels = variance[:, 0].argsort(dim=1, stable=True)[:, : max(1, x.shape[2] // 2)].sort(dim=1).values
    return x.gather(2, channels[:, None].expand(-1, x.shape[1], -1))


def _similarity(squared: Tensor) -> Tensor:
    """Sum of Gaussians of the squared distance to a center, [B,N]."""
    squared = squared.clamp(min=0)
    return sum(((-squared / (2 * width)).exp() for width in _WIDTHS), torch.zeros_like(squared))
