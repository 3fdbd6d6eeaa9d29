"""VidCom2: frames that stand out keep more tokens, and in each frame the tokens that stand out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.grid import Grid
from fewtokens.method import Method, check_keep, planned_count
from fewtokens.plan import Plan, sums
from fewtokens.reduce.segments import deal, rank_within
from fewtokens.tokens import Tokens

_WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)


class VidCom2(Method):
    """Keeps the tokens least like the mean of the video and of their frame, more of them in frames that stand out.

    Video Compression Commander (arXiv 2505.14454), as served by vLLM: on the half of the channels that varies least,
    normalised, a token's likeness to a centre is the sum of five Gaussians of its distance; a frame's share of the
    budget grows by the softmax (temperature 0.01) of its tokens' mean unlikeness to the video.

    The count is exact, max(one a frame, keep * cells). The published code rounds each frame's count and then
    mends the sum; here the places are dealt out in proportion at once (Sainte-Lague's rule, at least one a frame),
    which differs by at most a token or two in a frame.

    Args:
        keep: share of the cells (float) or count (int).
        temperature: of the softmax over frames; larger is more even.
    """

    paper = "Video Compression Commander (VidCom2), arXiv 2505.14454; vLLM --video-retention-ratio"
    licence = "written from the description; reference Apache-2.0"
    cost = "O(NC)"

    def __init__(self, keep: float | int = 0.25, *, temperature: float = 0.01) -> None:
        super().__init__()
        self.keep = check_keep(keep)
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.temperature = temperature

    def planned_count(self, grid: Grid) -> int:
        return max(grid.T, planned_count(grid, self.keep))

    def plan(self, tokens: Tokens) -> Plan:
        T, frame = tokens.grid.T, tokens.frame.masked_fill(~tokens.mask, -1)
        real = tokens.mask[..., None].float()
        x = _calm_half(tokens.features.float(), real)
        count = sums(real, frame, T)  # [B,T,1]
        video = (x * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)
        of_frame = sums(x * real, frame, T) / count.clamp(min=1)
        place = frame.clamp(min=0)
        to_video = _likeness(x, video)
        to_frame = _likeness(x, of_frame.gather(1, place[..., None].expand(-1, -1, x.shape[2])))
        # How a frame stands out: the mean unlikeness of its tokens to the video.
        unlike = -sums(to_video[..., None] * real, frame, T) / count.clamp(min=1)  # [B,T,1]
        there = count[..., 0] > 0
        weight = (unlike[..., 0] / self.temperature).masked_fill(~there, -torch.inf).softmax(1)
        share = (1 + weight - 1 / there.sum(1, keepdim=True)) * count[..., 0]
        rank = rank_within(to_video + to_frame, frame, T)
        order = deal(rank, share.gather(1, place))  # but the first of each frame before all others
        return Plan.top(-order.masked_fill(rank == 0, -1.0), self.counts(tokens), tokens)


def _calm_half(x: Tensor, real: Tensor) -> Tensor:
    """The half of the channels with the lowest variance over the video's tokens, normalised; [B,N,C/2]."""
    count = real.sum(1, keepdim=True)
    mean = (x * real).sum(1, keepdim=True) / count
    variance = ((x - mean).square() * real).sum(1)
    calm = variance.argsort(dim=1, stable=True)[:, : max(1, x.shape[2] // 2)].sort(dim=1).values
    return F.normalize(x.gather(2, calm[:, None].expand(-1, x.shape[1], -1)), dim=2)


def _likeness(x: Tensor, centre: Tensor) -> Tensor:
    """Sum of Gaussians of the distance to a centre, [B,N]."""
    squared = (x - centre).square().sum(2)
    return sum(((-squared / (2 * width)).exp() for width in _WIDTHS), torch.zeros_like(squared))
