"""D-CoDe's tokens: those with the largest norms, of which similar ones are merged."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan, top_mask
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.groups import plan_from_groups, split_groups
from fewtokens.methods.ops.leaders import first_similar

# Pairs of tokens that are compared at a time (64 MiB in float32).
_MAX_PAIRS = 1 << 24


class DcodeTokens(Reducer):
    """Keeps the tokens of each frame with the largest norms, and merges those that are similar.

    D-CoDe, its compression of tokens; `dcode` selects its frames. The share `share` of a frame's tokens with the
    largest L2 norms is kept. In raster order, a token joins the first earlier one that has joined no other and to which
    its cosine is at least `tau`; the others stay. A merged token is the mean, weighted by size. The published code
    changes features while it compares them, and a token that has already been merged can absorb another, which is then
    lost; here the original features decide, and no kept token is lost.

    Args:
        share: share of the tokens of a frame that is kept, in (0, 1], rounded down, but at least one. Default: 0.5,
            as published (288 of 576).
        tau: cosine from which tokens are merged, in -1..1. Default: 0.8, as published.
    """

    paper = (
        "D-CoDe: Scaling Image-Pretrained VLMs to Video via Dynamic Compression and Question Decomposition, EMNLP 2025"
    )
    license = "written from the paper and a description of its code; reference code Apache-2.0"
    cost = "O(T k^2 C) for k kept tokens per frame"

    def __init__(self, share: float = 0.5, *, tau: float = 0.8) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise ValueError(f"share must be in (0, 1], got {share!r}")
        if not -1 <= tau <= 1:
            raise ValueError(f"tau must be a cosine in -1..1, got {tau!r}")
        self.share, self.tau = share, tau

    def plan(self, tokens: Tokens) -> Plan:
        group = tokens.frame.masked_fill(~tokens.mask, -1)
        frames, slot = split_groups(tokens, group, tokens.grid.T)
        x = frames.features.float()
        size = frames.mask.sum(1)
        count = (size * self.share + 1e-6).long().clamp(min=1).minimum(size)
        kept = top_mask(x.norm(dim=2), count, frames.mask)
        x = F.normalize(x, dim=2)
        step = max(1, _MAX_PAIRS // x.shape[1] ** 2)
        parts = zip(x.split(step), kept.split(step), strict=True)
        dest = torch.cat([first_similar(rows, among, self.tau) for rows, among in parts])
        return plan_from_groups(dest, slot, group, tokens)
