"""Max-min diversity: the tokens that are farthest apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan, take_rows
from fewtokens.core.tokens import Tokens

# Pairwise similarities are computed in blocks of at most this many entries (16 MiB in float32).
_MAX_BLOCK_ENTRIES = 1 << 22


class MaxMin(Reducer):
    """Keeps a diverse set of tokens: greedily the farthest from all kept so far.

    The greedy solution of the max-min diversity problem by cosine distance, as in DivPrune (arXiv 2503.02175). DivPrune
    starts with the token whose nearest other token is farthest, which requires all pairwise similarities; by default
    this method starts with the token farthest from the mean of the video. Greedy selection depends on the first token,
    so the two keep different tokens; start="isolated" is DivPrune.

    Args:
        keep: budget, a fraction of the cells (float), a count (int) or "8/frame". Default: 0.25.
        start: first token: "mean" (default), the farthest from the mean, or "isolated", as published.
    """

    paper = "variant of DivPrune, arXiv 2503.02175"
    license = "written from the published problem statement"
    cost = "O(K N C): K sequential passes over the tokens; O(N^2 C) more with start='isolated'"

    def __init__(self, keep: float | int | str = 0.25, *, start: str = "mean") -> None:
        super().__init__()
        if start not in ("mean", "isolated"):
            raise ValueError(f"max_min: start must be 'mean' or 'isolated', got {start!r}")
        self.set_budget(keep)
        self.start = start

    def plan(self, tokens: Tokens) -> Plan:
        counts = self.counts(tokens)
        x = F.normalize(tokens.features.float(), dim=2) * tokens.mask[..., None]
        # Similarity to the nearest kept token; at the start, to the mean or to the nearest other token.
        if self.start == "mean":
            near = (x * F.normalize(x.sum(1, keepdim=True), dim=2)).sum(2)
        else:
            near = _nearest_other(x, tokens.mask)
        near = near.masked_fill(~tokens.mask, torch.inf)
        survives = torch.zeros_like(tokens.mask)
        for step in range(int(counts.max())):
            newest = near.masked_fill(survives, torch.inf).argmin(1, keepdim=True)  # [B,1]
            survives = survives.scatter(1, newest, (step < counts)[:, None] | survives.gather(1, newest))
            similar = (x @ take_rows(x, newest).transpose(1, 2))[..., 0]
            near = similar.masked_fill(~tokens.mask, torch.inf) if step == 0 else torch.maximum(near, similar)
        return Plan.keep(survives & tokens.mask)


def _nearest_other(x: Tensor, mask: Tensor) -> Tensor:
    """The similarity of each token to its most similar other token, [B,N], for unit rows x [B,N,C]."""
    block = max(1, _MAX_BLOCK_ENTRIES // (x.shape[0] * x.shape[1]))
    nearest = []
    for start, rows in zip(range(0, x.shape[1], block), x.split(block, 1), strict=True):
        similar = (rows @ x.transpose(1, 2)).masked_fill_(~mask[:, None], -torch.inf)
        similar.diagonal(start, 1, 2).fill_(-torch.inf)
        nearest.append(similar.amax(2))
    return torch.cat(nearest, 1)
