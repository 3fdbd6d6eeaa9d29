"""FrameFusion, its merging part: a patch that stays like itself over time is one token."""

from __future__ import annotations

import torch

from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.temporal import cosine, with_previous


class FrameFusion(Reducer):
    """A token merges into the one at the same place a frame before if they are alike; chains become their mean.

    FrameFusion (arXiv 2501.01986), the merging of its early layers, here on features. Its second part prunes by the
    attention of a language model.

    Args:
        similarity: cosine from which tokens merge; 0.6 in the paper.
        keep: a budget instead: so many chains, broken where neighbors are least alike; the first frame always begins
            one at each place, so it is at least one frame.
    """

    paper = "FrameFusion: Combining Similarity and Importance for Video Token Reduction, arXiv 2501.01986"
    license = "written from the description; reference MIT or Apache-2.0 (its files disagree)"
    cost = "O(NC)"

    def __init__(self, similarity: float | None = None, *, keep: float | int | str | None = None) -> None:
        super().__init__()
        self.take_budget(keep, similarity=similarity)
        if similarity is not None and not -1 <= similarity <= 1:
            raise ValueError(f"similarity is a cosine, in [-1, 1], got {similarity}")
        self.similarity = similarity

    def fewest(self, grid: Grid) -> int:
        return grid.cells_per_frame

    def plan(self, tokens: Tokens) -> Plan:
        before, known = with_previous(tokens.features, tokens)
        like = cosine(tokens.features, before).masked_fill(~known, -2)
        if self.budget is None:
            begins = like < (0.6 if self.similarity is None else self.similarity)
        else:
            order = like.masked_fill(~tokens.mask, torch.inf).argsort(dim=1, stable=True)
            begins = order.argsort(dim=1) < self.counts(tokens)[:, None]
        own = torch.arange(tokens.N, device=tokens.device).expand_as(begins)
        first = torch.where(begins | ~known, own, tokens.previous_frame_index().clamp(min=0))
        # Each points to the one before it; jumping on until all point to where their chain begins.
        while bool((first.gather(1, first) != first).any()):
            first = first.gather(1, first)
        return Plan.group(first.masked_fill(~tokens.mask, -1), tokens, tokens.N)
