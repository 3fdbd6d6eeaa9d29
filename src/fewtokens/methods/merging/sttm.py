"""STTM: a quadtree of each frame, with its nodes merged over time."""

from __future__ import annotations

from typing import Any

from fewtokens.core.method import Method
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.quadtree import Squares


class Sttm(Method):
    """Merges uniform regions into quadtree nodes, and similar nodes over time.

    STTM (arXiv 2507.07990), multi-granular merging. Space: on a pyramid of 2x2 means, from the coarsest level down, a
    node is not split if it is similar to each of its children (cosine at least tau). Time: nodes of consecutive frames
    merge if one contains the other and their cosine is at least tau_time. A node is the mean of its children,
    regardless of their sizes, and a merged token is the mean of its nodes.

    Overlapping nodes are found cell by cell, so the cost grows with the number of cells, not with pairs of nodes. All
    nodes connected over any number of steps merge. The published code stops label propagation too early and leaves some
    of them separate (on three clips up to 7 % of the tokens differ for this reason, and no others); a variant that it
    no longer calls has a race condition. The published code treats a tau_time of 0 or less as "merge nothing".

    Args:
        tau: cosine in space from which nodes merge, in [-1, 1]. Default: 0.85, which leaves about half of the tokens;
            tuned for each data set in the paper.
        tau_time: cosine over time from which nodes merge, in [-1, 1]. Default: 0.6.
        levels: halvings of the frame up to the coarsest node, at least 0. Default: one fewer than it takes to reach two
            rows or columns, as in the published runs (2 on 13x13 and 14x14: nodes of up to 4x4 cells; 3 on 24x24; 0 on
            4x4, where nothing merges in space).
        weighted: whether nodes and tokens are means of their cells, instead of means of their children. Default:
            False.
        strips: "first" (default), as published: an odd side begins with a narrower node, and a node with missing
            children is compared with the first node of the level below in their place; "last": an odd side ends with a
            narrower node, compared with the children it has.
        keep: budget in place of tau and tau_time, a fraction of the cells (float), a count (int) or "8/frame": a search
            over one common threshold, then pairwise merging to the exact count where equal cosines leave more.
    """

    paper = "Multi-Granular Spatio-Temporal Token Merging (STTM), arXiv 2507.07990"
    license = "written from the description; the reference code has no license"
    cost = "O(levels * N C); with keep also O(M^2 C) to merge the last of M tokens pairwise"
    full_grid = True

    def __init__(
        self,
        tau: float | None = None,
        *,
        tau_time: float | None = None,
        levels: int | None = None,
        weighted: bool = False,
        strips: str = "first",
        keep: float | int | str | None = None,
    ) -> None:
        super().__init__()
        if tau is None:
            self.set_budget(keep, tau_time=tau_time)
        else:
            self.set_budget(keep, tau=tau)
        self.tau, self.tau_time, self.levels, self.weighted = tau, tau_time, levels, bool(weighted)
        self.strips = strips
        self.squares = Squares(tau, tau_time, levels, bool(weighted), strips)

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        return self.squares.merge(tokens, None if self.budget is None else self.counts(tokens))
