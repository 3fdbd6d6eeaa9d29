"""DyCoke's second stage: during generation, caches hold the video tokens that the latest token attends to most."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.budget import Budget
from fewtokens.core.layer_method import CachePoint, CacheState, LayerMethod, check_layer, highest


class DyCokeCache(LayerMethod):
    """During generation, caches from one layer on hold only the video tokens with the highest attention.

    DyCoke (arXiv 2411.15024), its second stage (dynamic pruning). The prompt is processed with all tokens. At every
    generation step, the attention of the latest token in layer `layer` - 1 is computed (one row, mean over heads).
    Video tokens are chosen at the first step, and again whenever the cosine similarity of this row to that of the
    previous step is below `similarity`; otherwise the last choice stays (the published code reads all tokens in such a
    step).

    Differences from the reference: it keeps all entries and gathers from them at every step, which saves no memory;
    here dropped entries move to host memory and return when they are chosen. With `revive=False` they are discarded at
    the first step and the first choice is final.

    Args:
        keep: fraction of a prompt's video tokens, in (0, 1]. Default: 0.3, as in the paper's evaluation (0.2 in its
            code).
        layer: first layer whose cache is pruned, at least 1. Default: 3, as in the paper.
        similarity: threshold in [-1, 1]. Default: 0.9, as in the paper.
        revive: whether dropped entries can return.
    """

    paper = "DyCoke: Dynamic Compression of Tokens, arXiv 2411.15024, section 3.3"
    license = "written from the paper; reference code Apache-2.0"
    cost = "one row of attention per step; moves cache entries when the choice changes"

    def __init__(self, keep: float = 0.3, *, layer: int = 3, similarity: float = 0.9, revive: bool = True) -> None:
        if not -1 <= similarity <= 1:
            raise ValueError(f"dycoke_cache: similarity must be a cosine in [-1, 1], got {similarity}")
        self.keep, self.layer = Budget.parse(keep, units=("fraction",)).value, check_layer(layer, "dycoke_cache")
        self.similarity, self.revive = float(similarity), bool(revive)

    def cache_point(self, depth: int) -> CachePoint:
        return CachePoint(self.layer, self.layer - 1, self.revive)

    def choose_cached(self, state: CacheState) -> Tensor | None:
        count = (state.video.sum(1).double() * self.keep + 1e-6).long().clamp(min=1)
        choice = highest(state.scores, state.held, count)
        if state.previous_scores is None or state.previous is None:
            return choice
        changed = F.cosine_similarity(state.scores, state.previous_scores, dim=1) < self.similarity
        return torch.where(changed[:, None], choice, state.previous) if bool(changed.any()) else None
