"""FrameFusion, its merging part: a patch that stays similar over time becomes one token."""

from __future__ import annotations

import torch

from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.bipartite import merge_to
from fewtokens.methods.ops.temporal import compare_with_previous, cosine


class FrameFusion(Reducer):
    """Merges each token into the same position of the previous frame if similar.

    FrameFusion (arXiv 2501.01986): the merging of its early layers, applied to features here. Tokens that merge over
    several frames form a chain, which becomes their mean. The second part of the paper, pruning by the attention of a
    language model, is not included.

    Args:
        similarity: cosine from which tokens merge, in [-1, 1]. Default: 0.6, as in the paper.
        keep: budget in place of `similarity`, a fraction of the cells (float), a count (int) or "8/frame": the number
            of chains, cut where consecutive tokens are least similar. The first frame always starts one chain per
            position, so at least one frame. More chains may begin after a method that has dropped tokens; the most
            similar pairs of their tokens are merged.
    """

    paper = "FrameFusion: Combining Similarity and Importance for Video Token Reduction, arXiv 2501.01986"
    license = "written from the description; reference code MIT or Apache-2.0 (its files disagree)"
    cost = "O(NC)"

    def __init__(self, similarity: float | None = None, *, keep: float | int | str | None = None) -> None:
        super().__init__()
        self.set_budget(keep, similarity=similarity)
        if similarity is not None and not -1 <= similarity <= 1:
            raise ValueError(f"similarity must be a cosine in [-1, 1], got {similarity}")
        self.similarity = similarity

    def min_count(self, grid: Grid) -> int:
        return grid.cells_per_frame

    def plan(self, tokens: Tokens) -> Plan:
        similar, has_previous = compare_with_previous(cosine, tokens.features, tokens)
        # After a method that merges, tokens of several frames may precede each other.
        previous = tokens.previous_frame_index().clamp(min=0)
        has_previous = has_previous & (tokens.positions[..., 0].gather(1, previous) < tokens.positions[..., 0])
        similar = similar.masked_fill(~has_previous, -2)
        if self.budget is None:
            begins = similar < (0.6 if self.similarity is None else self.similarity)
        else:
            order = similar.masked_fill(~tokens.mask, torch.inf).argsort(dim=1, stable=True)
            begins = order.argsort(dim=1) < self.counts(tokens)[:, None]
        own = torch.arange(tokens.N, device=tokens.device).expand_as(begins)
        first = torch.where(begins | ~has_previous, own, previous)
        # Each token points to its predecessor; pointer jumping until all point to the start of their chain.
        while bool((first.gather(1, first) != first).any()):
            first = first.gather(1, first)
        plan = Plan.group(first.masked_fill(~tokens.mask, -1), tokens, tokens.N)
        if self.budget is not None and not tokens.has_full_grid():
            # Tokens whose predecessor was dropped begin separate chains, perhaps too many.
            plan = plan.then(merge_to(tokens.apply(plan), self.counts(tokens), self.planned_counts(tokens)))
        return plan
