"""Keeps the first tokens: of a random number in training, so that any number can be decoded."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan, group_count
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.segments import rank_within

_DISTRIBUTIONS = ("uniform", "power_of_two", "uniform_power_of_two", "halving", "zipf")


class TailDrop(Reducer):
    """Keeps the first k tokens of each video, or of each frame, and drops the others; codes survive.

    Tail drop of One-D-Piece (arXiv 2501.10064) and nested dropout of FlexTok (arXiv 2502.13967), Semanticist (arXiv
    2503.08685) and, per frame of the latent grid, VideoFlexTok. It follows a quantizer or a bottleneck. In training, k
    is sampled from 1..n, so that earlier tokens learn to represent more; after `eval()` it is `keep`.

    Distributions of k:

    * "uniform": each of 1..n, where n is the number of tokens of the longest video or frame of the batch.
    * "power_of_two": each power of two up to n, and n.
    * "uniform_power_of_two": uniform, rounded up to a power of two, at most n.
    * "halving": n with probability 1/2, n/2 (rounded up) with 1/4, and so on; 1 with the rest.
    * "zipf": k with a probability in proportion to k^-0.5.

    Differs from FlexTok: tokens are removed instead of replaced with a learned vector, which is left to the decoder.

    Args:
        keep: after `eval()`, the fraction of the cells (float) or the count (int) of each video, or the count per
            frame ("8/frame"). With the last, k is also sampled for frames. Default: 1.0, all tokens.
        distribution: of k in training. Default: "uniform", as in One-D-Piece.
        share: what has the same k in training: "batch" for all videos, "video" for the frames of a video, or "frame"
            for none, which requires a count per frame. Default: "batch", as in One-D-Piece.
    """

    paper = "One-D-Piece: Image Tokenizer Meets Quality-Controllable Compression, arXiv 2501.10064"
    license = "Apache-2.0"
    cost = "O(N)"

    def __init__(
        self,
        keep: float | int | str = 1.0,
        *,
        distribution: Literal["uniform", "power_of_two", "uniform_power_of_two", "halving", "zipf"] = "uniform",
        share: Literal["batch", "video", "frame"] = "batch",
    ) -> None:
        super().__init__()
        self.set_budget(keep)
        if distribution not in _DISTRIBUTIONS:
            raise ValueError(f"distribution must be one of {', '.join(_DISTRIBUTIONS)}, got {distribution!r}")
        if share not in ("batch", "video", "frame"):
            raise ValueError(f"share must be batch, video or frame, got {share!r}")
        if share == "frame" and not self.per_frame:
            raise ValueError(f"share='frame' requires a count per frame such as keep='8/frame', got keep={keep!r}")
        self.distribution, self.share = distribution, share
        # Random only after `train()`, so that a method in use keeps its budget.
        self.eval()

    @property
    def per_frame(self) -> bool:
        """Whether the first tokens of each frame are kept, instead of those of the video."""
        return self.budget is not None and self.budget.unit == "per frame"

    @property
    def causal(self) -> bool:
        """Whether frames are independent."""
        return self.per_frame

    def step(self, tokens: Tokens, state: Any = None, **cues: Any) -> tuple[Tokens, Any]:
        return (self(tokens, **cues), None) if self.causal else super().step(tokens, state, **cues)

    def plan(self, tokens: Tokens, **cues: Any) -> Plan:
        # The frames, or the full video, of which the first tokens are kept.
        groups = tokens.grid.T if self.per_frame else 1
        group = tokens.frame if self.per_frame else torch.zeros_like(tokens.assignment[:, :1]).expand(-1, tokens.N)
        group = group.masked_fill(~tokens.mask, -1)
        rank = rank_within(torch.zeros_like(tokens.sizes), group, groups)
        if self.training:
            kept = self._sample(int(group_count(group, groups).max()), (tokens.B, groups)).to(tokens.device)
        elif self.per_frame:
            assert self.budget is not None
            kept = torch.full((tokens.B, groups), int(self.budget.value), device=tokens.device)
        else:
            kept = self.counts(tokens)[:, None]
        return Plan.keep((rank < kept.gather(1, group.clamp(min=0))) & tokens.mask)

    def _sample(self, largest: int, shape: tuple[int, int]) -> Tensor:
        """Samples the number of tokens of each frame or video, int64 [B,groups]."""
        distinct = {"batch": (1, 1), "video": (shape[0], 1), "frame": shape}[self.share]
        index = torch.multinomial(self.probabilities(largest), math.prod(distinct), replacement=True)
        return 1 + index.reshape(distinct).expand(shape)

    def probabilities(self, largest: int) -> Tensor:
        """Returns the probability of each k in 1..largest in training, float64 [largest]."""
        k = torch.arange(1, largest + 1, dtype=torch.float64)
        if self.distribution == "uniform":
            return torch.full_like(k, 1 / largest)
        if self.distribution == "zipf":
            return k**-0.5 / (k**-0.5).sum()
        exponents = range((largest - 1).bit_length() + 1)
        powers = [min(2**exponent, largest) for exponent in exponents]
        halves = [-(-largest // 2**exponent) for exponent in exponents]
        weights = dict.fromkeys(range(1, largest + 1), 0.0)
        if self.distribution == "halving":
            weights |= {value: 0.5 ** (exponent + 1) for exponent, value in enumerate(halves)}
            weights[1] *= 2
        elif self.distribution == "power_of_two":
            weights |= dict.fromkeys(powers, 1.0)
        else:
            weights |= {value: value - lower for lower, value in zip([0, *powers], powers, strict=False)}
        probabilities = torch.tensor(list(weights.values()), dtype=torch.float64)
        return probabilities / probabilities.sum()
