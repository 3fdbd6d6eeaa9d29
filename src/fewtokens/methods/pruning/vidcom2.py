"""VidCom2: frames that stand out keep more tokens, and in each frame the tokens that stand out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.budget import Budget
from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan, sums
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.segments import rank_within

_WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)


class VidCom2(Reducer):
    """Keeps the tokens least like the mean of the video and of their frame, more of them in frames that stand out.

    Video Compression Commander (arXiv 2505.14454), as served by vLLM: on the half of the channels that varies least,
    normalised, a token's likeness to a centre is the sum of five Gaussians of its distance; a frame's share of the
    budget grows by the softmax (temperature 0.01) of its tokens' mean unlikeness to the video. A frame's count is
    rounded, at least one; then the sum is mended over all frames: the most alike of what stays go, or the least alike
    of the others stay. Where the budget is hardly one a frame, that can empty a frame. The authors' code leaves the sum
    as rounding has it, so that its count depends on the video.

    The count is exact, max(one a frame, keep * cells).

    Args:
        keep: share of the cells (float) or count (int); 0.25 by default.
        temperature: of the softmax over frames; larger is more even.
        q: vLLM's pruning rate instead, in [0, 1), for those who size placeholders with its count: int(cells * (1 - q))
            in double precision, cut off, which is one less than keep=1-q gives where 1 - q falls short of its decimal
            value (59 of 6 x 50 cells at q = 0.8, where keep=0.2 gives 60).
    """

    paper = "Video Compression Commander (VidCom2), arXiv 2505.14454; vLLM --video-pruning-method vidcom2"
    license = "written from the description; reference Apache-2.0"
    cost = "O(NC)"

    def __init__(
        self, keep: float | int | str | None = None, *, temperature: float = 0.01, q: float | None = None
    ) -> None:
        super().__init__()
        self.take_budget(keep, default=0.25, q=q)
        if q is not None:
            self.budget = Budget.pruning(q, caller=self.name)
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.temperature, self.q = temperature, q

    def fewest(self, grid: Grid) -> int:
        return grid.T

    def plan(self, tokens: Tokens) -> Plan:
        T, frame = tokens.grid.T, tokens.frame.masked_fill(~tokens.mask, -1)
        real = tokens.mask[..., None].float()
        x = _calm_half(tokens.features.float(), real)
        count = sums(real, frame, T)  # [B,T,1]
        video = (x * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)
        of_frame = sums(x * real, frame, T) / count.clamp(min=1)
        place = frame.clamp(min=0)
        to_video = _likeness(x, video)
        likeness = to_video + _likeness(x, of_frame.gather(1, place[..., None].expand(-1, -1, x.shape[2])))
        # How a frame stands out: the mean unlikeness of its tokens to the video.
        unlike = -sums(to_video[..., None] * real, frame, T) / count.clamp(min=1)  # [B,T,1]
        size = count[..., 0]
        there = size > 0
        weight = (unlike[..., 0] / self.temperature).masked_fill(~there, -torch.inf).softmax(1)
        scale = self._share(tokens) * (1 + weight - 1 / there.sum(1, keepdim=True))
        places = (scale.clamp(max=1) * size).round().clamp(min=1).minimum(size)
        stays = rank_within(likeness, frame, T) < places.gather(1, place)
        # The sum is mended over all frames: what stays comes first, and each part goes by its likeness.
        order = likeness.argsort(dim=1, stable=True).argsort(dim=1)
        return Plan.top(-(order + tokens.N * ~stays), self.counts(tokens), tokens, num_slots=self.max_slots(tokens))

    def _share(self, tokens: Tokens) -> Tensor:
        """The share of the tokens at hand that the frames' counts are rounded from, float32 [B,1]."""
        assert self.budget is not None
        wanted = [self.budget.amount(grid) for grid in tokens.grid.videos(tokens.B)]
        share = torch.tensor(wanted, dtype=torch.float64, device=tokens.device) / tokens.count
        return share.clamp(max=1).float()[:, None]


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
