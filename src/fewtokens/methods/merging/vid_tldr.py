"""vid-TLDR: in the first blocks of an encoder background merges away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan, sums
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.bipartite import bipartite_plan


class VidTldr(Reducer):
    """Merges early, and what merges counts by its saliency, so that background vanishes.

    vid-TLDR (arXiv 2403.13347). A token is salient where its attention (mean over heads, sizes left out) is sharp: the
    sum of A log A, mapped to 0..1 over the frame; what is below the mean counts nothing, the rest by its height
    above it. Tokens are matched as in ToMe, but on their features after attention. A token that merges into another
    one brings its features and its size times its saliency; the other keeps its own. So sizes no longer count cells.
    Where all rows are equally sharp nothing is background. The paper works on the 12 frames of a clip at once; a frame
    at a time here, as the encoders do.

    Args:
        keep: share of the cells, met by each frame; 0.25 where nothing is said.
        r: instead, what goes in each block from the first one on: counts, or shares below 1, such as the paper's
            (600, 200, 100) of 2352. At most half of the tokens go in a block.
        blocks: with `keep`, how many blocks merge, by the same factor each; more where halving needs them.
        by: "attention", or "shift": saliency is what the MLP before added (Representation Shift, arXiv 2508.00367).
    """

    stage = "encoder"
    paper = "vid-TLDR: Training Free Token merging for Light-weight Video Transformer, arXiv 2403.13347"
    license = "written from the description; reference MIT, with files derived from a non-commercial one"
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
        self.take_budget(keep, default=0.25, r=r)
        if by not in ("attention", "shift"):
            raise ValueError(f"saliency is by 'attention' or 'shift', not {by!r}")
        if blocks < 1:
            raise ValueError(f"blocks must be at least 1, got {blocks}")
        if r is not None and any(not isinstance(n, int | float) or n < 0 for n in r):
            raise ValueError(f"r must be counts, or shares below 1, of what goes in each block, got {r!r}")
        self.r = None if r is None else list(r)
        self.blocks, self.by = blocks, by

    @property
    def needs(self) -> tuple[str, ...]:
        return ("sharpness",) if self.by == "attention" else ("shift",)

    def _away(self, tokens: Tokens, layer: int, depth: int) -> Tensor:
        """How many tokens of each video go in this block, int64 [B]."""
        if self.r is not None:
            r = self.r[layer] if layer < len(self.r) else 0
            return (tokens.count * r).long() if r < 1 else torch.full_like(tokens.count, int(r))
        target = self.counts(tokens)
        # Halving alone takes so many blocks.
        most = max(1, math.ceil(math.log2(max(1.0, float((tokens.count / target).max())))))
        left = min(depth - layer, max(self.blocks - layer, most))
        if left < most:
            raise ValueError(f"{self.spec} cannot be reached in {depth} blocks, each halves at most; keep more")
        step = tokens.count * (target / tokens.count.clamp(min=1)) ** (1 / left)
        return tokens.count - (target if left == 1 else torch.maximum(step.ceil().long(), target))

    def plan(self, tokens: Tokens, *, layer: int = 0, depth: int = 1, **cues: Any) -> Plan:
        plan = bipartite_plan(tokens.features.detach(), self._away(tokens, layer, depth), tokens)
        assert plan.dest is not None
        # Tokens that merge into others stand in the half that chooses, and share their destination.
        places = torch.arange(tokens.N, device=tokens.device)
        chooses = (places - tokens.num_prefix) % 2 == 0
        dest = plan.dest.clamp(min=0)
        together = sums(tokens.mask[..., None].float(), plan.dest, plan.num_slots).squeeze(2).gather(1, dest) > 1
        score = saliency(cues[self.needs[0]], tokens.mask)
        return replace(plan, sizes=torch.where(chooses & together, tokens.sizes * score, tokens.sizes))


def saliency(sharpness: Tensor, mask: Tensor) -> Tensor:
    """Importance in 0..1: zero below the mean, then linear to 1 at the sharpest; 1 for all where all are equal.

    Args:
        sharpness: [B,N]. mask: bool [B,N].
    """
    values = sharpness.float()
    low = values.masked_fill(~mask, torch.inf).amin(1, keepdim=True)
    high = values.masked_fill(~mask, -torch.inf).amax(1, keepdim=True)
    span = high - low
    unit = ((values - low) / span.clamp(min=1e-12)).masked_fill(~mask, 0)
    above = unit - unit.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    top = above.masked_fill(~mask, -torch.inf).amax(1, keepdim=True)
    score = (above / top.clamp(min=1e-12)).clamp(min=0)
    # Differences of rounding are none.
    flat = span <= 1e-6 * torch.maximum(low.abs(), high.abs()).clamp(min=1e-6)
    return torch.where(flat, 1.0, score).masked_fill(~mask, 0)
