"""HoliTom, inner part: late in the language model tokens go into the one most like them."""

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
    may_spare_all,
    top,
)
from fewtokens.methods.ops.segments import rank_within

# Entries of a table of cosines made at once (64 MiB in float32).
_AT_ONCE = 1 << 24


class HoliTomInner(LayerMethod):
    """Before one layer keeps the tokens that the last word looked at in the layer before; the others merge into them.

    HoliTom (arXiv 2505.21334), its inner part. A token that goes is averaged into the kept one whose hidden state is
    most like its own (cosine), 1 to 1 and one after the other, so that later ones weigh more, as published; `merge`
    "mean" counts each once, "drop" merges nothing. Kept tokens keep their positions. Only tokens of videos go.

    Args:
        keep: share, to the nearest whole number, or count of a prompt's video tokens; 0.5 in the paper.
        layer: the first layer with fewer; 18 in the paper (of 28).
        merge: "sequential", "mean" or "drop".
    """

    paper = "HoliTom: Holistic Token Merging for Fast Video Large Language Models, arXiv 2505.21334"
    license = "written from the description; reference Apache-2.0"
    cost = "one row of attention, O(n^2 C) for the nearest, in blocks"

    def __init__(self, keep: float | int = 0.5, *, layer: int = 18, merge: str = "sequential") -> None:
        if merge not in ("sequential", "mean", "drop"):
            raise ValueError(f"holitom_inner: merge must be 'sequential', 'mean' or 'drop', got {merge!r}")
        self.keep, self.layer, self.merge = (
            Budget.parse(keep, units=("share", "count")).value,
            check_layer(layer, "holitom_inner"),
            merge,
        )

    def prune_points(self, depth: int) -> list[PrunePoint]:
        return [PrunePoint(self.layer, self.layer - 1)]

    def keeps_all(self, number: int) -> bool:
        return may_spare_all(self.keep)

    def choose(self, state: LayerState, number: int) -> LayerDecision:
        kept = top(state, counts(state, self.keep, nearest=True))
        gone = state.video & ~kept
        if self.merge == "drop" or not bool(gone.any()):
            return LayerDecision(kept)
        rows = [self._merged(row, stays, goes) for row, stays, goes in zip(state.hidden, kept, gone, strict=True)]
        return LayerDecision(kept, torch.stack(rows))

    def _merged(self, hidden: Tensor, kept: Tensor, gone: Tensor) -> Tensor:
        """One prompt [M,D] with the tokens `gone` in those `kept`."""
        x, targets = hidden[gone].float(), hidden[kept].float()
        if not len(x):
            return hidden
        with torch.no_grad():
            near = nearest(x, targets)
            members = torch.bincount(near, minlength=len(targets))
            if self.merge == "mean":
                own, share = 1 / (members + 1.0), 1 / (members[near] + 1.0)
            else:
                # Halved once for every token that comes after it.
                order = rank_within(torch.zeros(1, len(near), device=near.device), near[None], len(targets))[0]
                own, share = 0.5**members, 0.5 ** (members[near] - order)
        merged = (own[:, None] * targets).index_add(0, near, share[:, None] * x)
        merged = torch.where(members[:, None] > 0, merged, targets)
        return hidden.index_put((kept.nonzero()[:, 0],), merged.to(hidden.dtype))


def nearest(x: Tensor, targets: Tensor) -> Tensor:
    """The target [m,D] of the largest cosine with each of x [n,D], the first of equals: int64 [n]."""
    targets = F.normalize(targets, dim=1)
    blocks = x.split(max(1, _AT_ONCE // len(targets)))
    return torch.cat([(F.normalize(block, dim=1) @ targets.T).argmax(1) for block in blocks])
