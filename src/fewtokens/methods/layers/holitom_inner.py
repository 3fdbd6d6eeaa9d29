"""HoliTom, inner part: in a late layer, dropped tokens merge into the most similar kept token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.budget import Budget
from fewtokens.core.layer_method import (
    LayerDecision,
    LayerMethod,
    LayerState,
    PrunePoint,
    check_layer,
    counts,
    top,
)
from fewtokens.methods.ops.segments import rank_within

# Entries of one block of the cosine similarity matrix (64 MiB in float32).
_BLOCK = 1 << 24


class HoliTomInner(LayerMethod):
    """Before one layer, keeps the video tokens with the highest attention and merges the others into them.

    HoliTom (arXiv 2505.21334), its inner part. The score is the attention of the last question token in the previous
    layer. Each dropped token is averaged into the kept token whose hidden state is most similar (cosine), sequentially
    and at equal weight, so later tokens weigh more, as published. `merge="mean"` weights all members equally, "drop"
    merges nothing. Kept tokens keep their positions. Only video tokens are dropped.

    Args:
        keep: fraction (float in (0, 1], rounded to the nearest count) or number (int) of a prompt's video tokens.
            Default: 0.5, as in the paper.
        layer: first layer with fewer tokens, at least 1. Default: 18 (of 28), as in the paper.
        merge: "sequential", "mean" or "drop".
    """

    paper = "HoliTom: Holistic Token Merging for Fast Video Large Language Models, arXiv 2505.21334"
    license = "written from the paper; reference code Apache-2.0"
    cost = "one row of attention; O(n^2 C) for the nearest tokens, in blocks"

    def __init__(self, keep: float | int = 0.5, *, layer: int = 18, merge: str = "sequential") -> None:
        if merge not in ("sequential", "mean", "drop"):
            raise ValueError(f"holitom_inner: merge must be 'sequential', 'mean' or 'drop', got {merge!r}")
        self.keep, self.layer, self.merge = (
            Budget.parse(keep, units=("fraction", "count")).value,
            check_layer(layer, "holitom_inner"),
            merge,
        )

    def prune_points(self, depth: int) -> list[PrunePoint]:
        return [PrunePoint(self.layer, self.layer - 1)]

    def choose(self, state: LayerState, index: int) -> LayerDecision:
        selected = top(state, counts(state, self.keep, nearest=True))
        dropped = state.video & ~selected
        if self.merge == "drop" or not bool(dropped.any()):
            return LayerDecision(selected)
        rows = [self._merge(*prompt) for prompt in zip(state.hidden, selected, dropped, strict=True)]
        return LayerDecision(selected, torch.stack(rows))

    def _merge(self, hidden: Tensor, selected: Tensor, dropped: Tensor) -> Tensor:
        """Hidden states of one prompt [M,D] after merging the tokens `dropped` into those `selected`."""
        x, targets = hidden[dropped].float(), hidden[selected].float()
        if not len(x):
            return hidden
        with torch.no_grad():
            target = nearest_targets(x, targets)
            members = torch.bincount(target, minlength=len(targets))
            if self.merge == "mean":
                target_weight, weight = 1 / (members + 1.0), 1 / (members[target] + 1.0)
            else:
                # The weight halves with each token merged later.
                order = rank_within(torch.zeros(1, len(target), device=target.device), target[None], len(targets))[0]
                target_weight, weight = 0.5**members, 0.5 ** (members[target] - order)
        merged = (target_weight[:, None] * targets).index_add(0, target, weight[:, None] * x)
        merged = torch.where(members[:, None] > 0, merged, targets)
        return hidden.index_put((selected.nonzero()[:, 0],), merged.to(hidden.dtype))


def nearest_targets(x: Tensor, targets: Tensor) -> Tensor:
    """Index of the target [m,D] with the largest cosine similarity to each x [n,D], first if tied: int64 [n]."""
    targets = F.normalize(targets, dim=1)
    blocks = x.split(max(1, _BLOCK // len(targets)))
    return torch.cat([(F.normalize(block, dim=1) @ targets.T).argmax(1) for block in blocks])
