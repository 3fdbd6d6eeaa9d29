"""DyCoke's second stage: while words are generated, caches hold the tokens that the latest word looks at."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.budget import Budget
from fewtokens.core.layer_method import CachePoint, CacheState, LayerMethod, check_layer, highest


class DyCokeCache(LayerMethod):
    """From one layer on, a cache holds the share of the video that the latest word attends to in the layer before.

    DyCoke (arXiv 2411.15024), its second stage (dynamic pruning). At every step the mean over heads of the attention of
    the word at hand in layer `layer` - 1 is computed, one row. At the first step, and if its cosine similarity to the
    row of the step before is below `similarity`, the tokens are chosen again; otherwise the last choice stays (the
    published code reads all tokens in such a step).

    The reference keeps all entries where they are and gathers from them in every step, which saves no memory; here the
    others are moved to the host's memory and come back when they are chosen. With `revive=False` they are given up at
    the first step, which is a variant: the choice of the first word then stays. A prompt is read with all tokens.

    Args:
        keep: share of a prompt's video tokens; 0.3 in the paper's evaluation (0.2 in the code's own default).
        layer: the first layer whose cache is cut; 3 in the paper.
        similarity: 0.9 in the paper.
        revive: whether what goes may come back.
    """

    paper = "DyCoke: Dynamic Compression of Tokens, arXiv 2411.15024, section 3.3"
    license = "written from the description; reference Apache-2.0"
    cost = "one row of attention a step; moving entries where the choice changes"

    def __init__(self, keep: float = 0.3, *, layer: int = 3, similarity: float = 0.9, revive: bool = True) -> None:
        if not -1 <= similarity <= 1:
            raise ValueError(f"dycoke_cache: similarity is a cosine, in [-1, 1], got {similarity}")
        self.keep, self.layer = Budget.parse(keep, units=("share",)).value, check_layer(layer, "dycoke_cache")
        self.similarity, self.revive = float(similarity), bool(revive)

    def cache_point(self, depth: int) -> CachePoint:
        return CachePoint(self.layer, self.layer - 1, self.revive)

    def choose_cached(self, state: CacheState) -> Tensor | None:
        count = (state.video.sum(1).double() * self.keep + 1e-6).long().clamp(min=1)
        kept = highest(state.scores, state.held, count)
        if state.previous_scores is None or state.previous is None:
            return kept
        changed = F.cosine_similarity(state.scores, state.previous_scores, dim=1) < self.similarity
        return torch.where(changed[:, None], kept, state.previous) if bool(changed.any()) else None
