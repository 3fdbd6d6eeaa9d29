"""Max-min diversity: the tokens that are farthest from one another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens

# Similarities of all pairs are taken in blocks of at most this many entries (16 MiB in float32).
_ENTRIES_AT_ONCE = 1 << 22


class MaxMin(Reducer):
    """Keeps tokens one by one, each the farthest from all that are kept (cosine distance).

    The greedy solution of the max-min diversity problem, which DivPrune (arXiv 2503.02175) prunes with. DivPrune begins
    with the token whose nearest other token is farthest, which takes the similarities of all pairs; by default the
    first one here is the token farthest from the mean of the video. Greedy choices depend on the first one, so the two
    keep different tokens: start="isolated" is DivPrune.

    Args:
        keep: share of the cells (float) or count (int).
        start: the first token: "mean", the farthest from the mean; or "isolated", as published.
    """

    paper = "variant of DivPrune, arXiv 2503.02175"
    license = "written from the published problem"
    cost = "O(K N C): one pass over the tokens for each that is kept, one after the other; O(N^2 C) more if isolated"

    def __init__(self, keep: float | int | str = 0.25, *, start: str = "mean") -> None:
        super().__init__()
        if start not in ("mean", "isolated"):
            raise ValueError(f"max_min starts with 'mean' or 'isolated', got {start!r}")
        self.take_budget(keep)
        self.start = start

    def plan(self, tokens: Tokens) -> Plan:
        counts = self.counts(tokens)
        x = F.normalize(tokens.features.float(), dim=2) * tokens.mask[..., None]
        # Nearness to what is kept; before anything is, to the mean or to the nearest other token.
        if self.start == "mean":
            near = (x * F.normalize(x.sum(1, keepdim=True), dim=2)).sum(2)
        else:
            near = _nearest_other(x, tokens.mask)
        near = near.masked_fill(~tokens.mask, torch.inf)
        kept = torch.zeros_like(tokens.mask)
        for step in range(int(counts.max())):
            chosen = near.masked_fill(kept, torch.inf).argmin(1, keepdim=True)  # [B,1]
            kept = kept.scatter(1, chosen, (step < counts)[:, None] | kept.gather(1, chosen))
            similar = (x @ x.gather(1, chosen[..., None].expand(-1, -1, x.shape[2])).transpose(1, 2))[..., 0]
            near = similar.masked_fill(~tokens.mask, torch.inf) if step == 0 else torch.maximum(near, similar)
        return Plan.keep(kept & tokens.mask)


def _nearest_other(x: Tensor, mask: Tensor) -> Tensor:
    """The similarity of each token to its most similar other one, [B,N], of rows x [B,N,C] of length 1."""
    block = max(1, _ENTRIES_AT_ONCE // (x.shape[0] * x.shape[1]))
    nearest = []
    for start, rows in zip(range(0, x.shape[1], block), x.split(block, 1), strict=True):
        similar = (rows @ x.transpose(1, 2)).masked_fill_(~mask[:, None], -torch.inf)
        similar.diagonal(start, 1, 2).fill_(-torch.inf)
        nearest.append(similar.amax(2))
    return torch.cat(nearest, 1)
