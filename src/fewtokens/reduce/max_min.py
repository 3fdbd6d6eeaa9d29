"""Max-min diversity: the tokens that are farthest from one another."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fewtokens.method import Method, check_keep
from fewtokens.plan import Plan
from fewtokens.tokens import Tokens


class MaxMin(Method):
    """Keeps tokens one by one, each the farthest from all that are kept (cosine distance).

    The greedy solution of the max-min diversity problem, as DivPrune (arXiv 2503.02175) prunes with; here the first one
    is the token farthest from the mean of the video (there: the one whose nearest other is farthest, which needs all
    pairs).

    Args:
        keep: share of the cells (float) or count (int).
    """

    paper = "variant of DivPrune, arXiv 2503.02175"
    licence = "written from the published problem"
    cost = "O(K N C): one pass over the tokens for each that is kept, one after the other"

    def __init__(self, keep: float | int = 0.25) -> None:
        super().__init__()
        self.keep = check_keep(keep)

    def plan(self, tokens: Tokens) -> Plan:
        counts = self.counts(tokens)
        x = F.normalize(tokens.features.float(), dim=2) * tokens.mask[..., None]
        mean = F.normalize(x.sum(1, keepdim=True), dim=2)
        # Nearness to what is kept; the mean stands in before anything is.
        near = (x * mean).sum(2).masked_fill(~tokens.mask, torch.inf)
        kept = torch.zeros_like(tokens.mask)
        for step in range(int(counts.max())):
            chosen = near.masked_fill(kept, torch.inf).argmin(1, keepdim=True)  # [B,1]
            kept = kept.scatter(1, chosen, (step < counts)[:, None] | kept.gather(1, chosen))
            similar = (x @ x.gather(1, chosen[..., None].expand(-1, -1, x.shape[2])).transpose(1, 2))[..., 0]
            near = similar.masked_fill(~tokens.mask, torch.inf) if step == 0 else torch.maximum(near, similar)
        return Plan.keep(kept & tokens.mask)
