"""vid-TLDR: merges the background away in the first blocks of an encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan, group_sum
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.bipartite import bipartite_plan


class VidTldr(Reducer):
    """In the first blocks, merges tokens weighted by their saliency.

    vid-TLDR (arXiv 2403.13347) lets the background fade. A token is salient if its attention (mean over heads, ignoring
    sizes) is sharp: the sum of A log A, scaled to 0..1 over the frame; tokens below the mean have saliency 0, the
    others their height above it. Tokens are matched as in ToMe, but on their features after attention. A token that
    merges into another contributes its features with its size times its saliency; the other keeps its own size. Sizes
    therefore no longer count cells. If all rows are equally sharp, nothing is background. The paper processes the 12
    frames of a clip in one pass; here each frame is processed separately, as the encoders do.

    Args:
        keep: budget, met by each frame separately: a fraction of the cells (float) or "8/frame". Default: 0.25.
        r: tokens removed in each block from the first on, in place of the budget: counts, or fractions below 1, such as
            the paper's (600, 200, 100) of 2352. At most half of the tokens are removed per block.
        blocks: with `keep`, the number of blocks that merge, each by the same factor; more if halving requires them.
            Default: 4.
        by: saliency from "attention" (default) or from "shift", what the previous MLP added (Representation Shift,
            arXiv 2508.00367).
    """

    stage = "encoder"
    paper = "vid-TLDR: Training Free Token merging for Light-weight Video Transformer, arXiv 2403.13347"
    license = "written from the description; reference code MIT, with files derived from a non-commercial source"
    cost = "O(N^2 C / 4) and an attention map, in the first blocks"

    def __init__(
        self,
        keep: float | int | str | None = None,
        *,
        r: Sequence[float] | None = None,
        blocks: int = 4,
        by: str = "attention",
    ) -> None:
        super().__init__()
        self.set_budget(keep, default=0.25, r=r)
        if by not in ("attention", "shift"):
            raise ValueError(f"by must be 'attention' or 'shift', got {by!r}")
        if blocks < 1:
            raise ValueError(f"blocks must be at least 1, got {blocks}")
        if r is not None and any(not isinstance(n, int | float) or n < 0 for n in r):
            raise ValueError(
                f"r must be a sequence of counts, or of fractions below 1, of tokens to remove per block, got {r!r}"
            )
        self.r = None if r is None else list(r)
        self.blocks, self.by = blocks, by

    @property
    def needs(self) -> tuple[str, ...]:
        return ("sharpness",) if self.by == "attention" else ("shift",)

    def _num_removed(self, tokens: Tokens, layer: int, depth: int) -> Tensor:
        """The number of tokens of each video to remove in this block, int64 [B]."""
        if self.r is not None:
            r = self.r[layer] if layer < len(self.r) else 0
            return (tokens.count * r).long() if r < 1 else torch.full_like(tokens.count, int(r))
        target = self.counts(tokens)
        # The number of blocks that repeated halving needs.
        least = max(1, math.ceil(math.log2(max(1.0, float((tokens.count / target).max())))))
        remaining = min(depth - layer, max(self.blocks - layer, least))
        if remaining < least:
            raise ValueError(
                f"{self.spec} cannot be reached in {depth} blocks (each at most halves the count); increase keep"
            )
        step = tokens.count * (target / tokens.count.clamp(min=1)) ** (1 / remaining)
        return tokens.count - (target if remaining == 1 else torch.maximum(step.ceil().long(), target))

    def plan(self, tokens: Tokens, *, layer: int = 0, depth: int = 1, **cues: Any) -> Plan:
        plan = bipartite_plan(tokens.features.detach(), self._num_removed(tokens, layer, depth), tokens)
        assert plan.dest is not None
        # Tokens that merge into others are in the matching half (set A) and share their destination.
        index = torch.arange(tokens.N, device=tokens.device)
        in_set_a = (index - tokens.num_prefix) % 2 == 0
        dest = plan.dest.clamp(min=0)
        merges = group_sum(tokens.mask[..., None].float(), plan.dest, plan.num_slots).squeeze(2).gather(1, dest) > 1
        score = saliency(cues[self.needs[0]], tokens.mask)
        return replace(plan, sizes=torch.where(in_set_a & merges, tokens.sizes * score, tokens.sizes))


def saliency(sharpness: Tensor, mask: Tensor) -> Tensor:
    """Importance in 0..1: zero below the mean, then linear up to 1 at the sharpest token; 1 for all if all are equal.

    Args:
        sharpness: [B,N].
        mask: bool [B,N].
    """
    values = sharpness.float()
    low = values.masked_fill(~mask, torch.inf).amin(1, keepdim=True)
    high = values.masked_fill(~mask, -torch.inf).amax(1, keepdim=True)
    span = high - low
    unit = ((values - low) / span.clamp(min=1e-12)).masked_fill(~mask, 0)
    above = unit - unit.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    top = above.masked_fill(~mask, -torch.inf).amax(1, keepdim=True)
    score = (above / top.clamp(min=1e-12)).clamp(min=0)
    # Differences within rounding error count as equal.
    flat = span <= 1e-6 * torch.maximum(low.abs(), high.abs()).clamp(min=1e-6)
    return torch.where(flat, 1.0, score).masked_fill(~mask, 0)
