"""STTM: a quadtree of each frame, its nodes joined over time."""

from __future__ import annotations

from typing import Any

from fewtokens.core.method import Method
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.quadtree import Squares


class Sttm(Method):
    """Plain regions of a frame become one large square token, and squares that stay the same join over time.

    STTM (arXiv 2507.07990), multi-granular merging. Space: on a pyramid of 2x2 means a node stays whole if it is like
    each of its children (cosine at least tau), from the coarsest level down; otherwise it is split. Time: nodes of
    neighboring frames are joined if one contains the other and they are alike (tau_time). A node is the mean of its
    children, whatever their sizes, and a joined token the mean of its nodes.

    Nodes that lie over one another are found cell by cell, so the work grows with the cells and not with pairs of
    nodes. All nodes that hang together over any number of steps are joined. The published code stops spreading labels
    too early and leaves some of them apart (of three clips up to 7 % of the tokens differ for that, and no others);
    a variant that it no longer calls writes them in a race. It takes a tau_time of 0 or less as "join nothing".

    Args:
        tau: likeness in space; 0.85 for about half of the tokens, tuned for each data set in the paper.
        tau_time: likeness over time; 0.6.
        levels: halvings of the frame up to the coarsest node; by default one fewer than lead to two rows or columns, as
            in the published runs (2 on 13x13 and 14x14: nodes of up to 4x4 cells; 3 on 24x24; 0 on 4x4, where nothing
            merges in space).
        weighted: nodes and tokens are plain means of their cells.
        strips: "first", as published: an odd side begins with a narrower node, and a node that lacks children is
            compared with the first node of the level below in their place; "last": an odd side ends with a narrower
            node, compared with the children it has.
        keep: a budget instead of tau and tau_time, which are then equal and searched for, and what is left is merged
            pairwise to the exact count.
    """

    paper = "Multi-Granular Spatio-Temporal Token Merging (STTM), arXiv 2507.07990"
    license = "written from the description; the reference code has no licence"
    cost = "O(levels * N C); with keep nine times that"
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
            self.take_budget(keep, tau_time=tau_time)
        else:
            self.take_budget(keep, tau=tau)
        self.tau, self.tau_time, self.levels, self.weighted = tau, tau_time, levels, bool(weighted)
        self.strips = strips
        self.squares = Squares(tau, tau_time, levels, bool(weighted), strips)

    def forward(self, tokens: Tokens, **cues: Any) -> Tokens:
        tokens.require_full_grid(self.name)
        return self.squares.merge(tokens, None if self.budget is None else self.counts(tokens))
