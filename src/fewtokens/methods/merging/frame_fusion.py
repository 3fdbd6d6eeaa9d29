"""FrameFusion, its merging part: a patch that stays like itself over time is one token."""

from __future__ import annotations

import torch

from fewtokens.core.grid import Grid
from fewtokens.core.method import Method, check_keep, planned_count
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.temporal import cosine, with_previous


class FrameFusion(Method):
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
    instead_of_keep = ("similarity",)
    partition = True
    conserves = True
    budget = False

    def __init__(self, similarity: float | None = None, *, keep: float | int | None = None) -> None:
        super().__init__()
        if similarity is not None and keep is not None:
            raise ValueError("frame_fusion takes similarity= or keep=, not both")
        if similarity is not None and not -1 <= similarity <= 1:
            raise ValueError(f"similarity is a cosine, in [-1, 1], got {similarity}")
        self.similarity, self.keep = similarity, None if keep is None else check_keep(keep)
        self.budget = keep is not None

    def planned_count(self, grid: Grid) -> int | None:
        return None if self.keep is None else max(grid.cells_per_frame, planned_count(grid, self.keep))

    def plan(self, tokens: Tokens) -> Plan:
        before, known = with_previous(tokens.features, tokens)
        like = cosine(tokens.features, before).masked_fill(~known, -2)
        if self.keep is None:
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
