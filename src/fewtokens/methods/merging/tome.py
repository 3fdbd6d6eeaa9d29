"""Token Merging (ToMe), arXiv 2210.09461."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.method import Method, check_keep, check_share, planned_by_frame, planned_count
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.bipartite import bipartite_plan, merge_to


class Tome(Method):
    """Merges the most similar tokens pairwise, by bipartite matching, weighing each by its size.

    On tokens (`stage="tokens"`, a variant: the paper works inside the encoder) all tokens of the video are
    matched on their features, at most half of them merging in one step, until the budget is met. The two
    halves alternate in raster order; where a frame has an even number of cells, equal places of all frames
    are in one half and merge from the second step on. Inside an
    encoder (`stage="encoder"`, as in the paper) r tokens of each frame merge in every block, between
    attention and MLP, matched on the attention keys (mean over heads); class and register tokens never
    merge, and the encoder weighs attention by the sizes unless told otherwise.

    Args:
        keep: share of the cells (float) or count (int); 0.25 where nothing is said. Inside an encoder a
            share, reached evenly over its blocks.
        r: inside an encoder, tokens to take away in each block: a number; (r, inflection) for a linear
            schedule from r*(1-inflection) to r*(1+inflection), as in the paper; or a list, one for each
            block, zeros after its end.
        stage: "tokens" or "encoder".

    Raises:
        ValueError: an argument that the stage does not take.
    """

    paper = "Token Merging: Your ViT But Faster, arXiv 2210.09461"
    license = "written from the paper; the reference code is CC BY-NC 4.0"
    cost = "O(N^2 C / 4) for the first step, in blocks of bounded memory"
    instead_of_keep = ("r",)
    partition = True
    conserves = True

    def __init__(
        self,
        keep: float | int | None = None,
        *,
        r: int | tuple[int, float] | Sequence[int] | None = None,
        stage: str = "tokens",
    ) -> None:
        super().__init__()
        self.r = r
        self.stage = stage
        self.keep: float | int | None = None
        if r is None:
            self.keep = check_keep(0.25 if keep is None else keep)
        elif keep is not None:
            raise ValueError("tome takes keep= or r=, not both")
        if stage not in ("tokens", "encoder"):
            raise ValueError(f"tome works at stage 'tokens' or 'encoder', not {stage!r}")
        if stage == "tokens" and r is not None:
            raise ValueError("r is for stage='encoder'; on tokens say keep=")
        if stage == "encoder":
            self.needs = ("keys",)
            self.budget = r is None
            if self.keep is not None:
                check_share(self.keep)
            if r is not None:
                schedule(r, 1)

    def planned_count(self, grid: Grid) -> int | None:
        if self.keep is None:
            return None
        if self.stage == "encoder":
            # The encoders here look at one frame at a time, and each frame meets the budget by itself.
            return planned_by_frame(grid, self.keep)
        return planned_count(grid, self.keep)

    def plan(self, tokens: Tokens, *, keys: Tensor, layer: int, depth: int) -> Plan:
        """One block's merging. `keys` [B,N,D]; `layer` counts from 0 of `depth` blocks."""
        if self.r is not None:
            return bipartite_plan(keys, schedule(self.r, depth)[layer], tokens)
        assert self.keep is not None
        target = planned_count(tokens.grid, self.keep)
        blocks = depth - layer
        if target << blocks < tokens.N:
            raise ValueError(f"tome cannot reach keep={self.keep} in {depth} blocks, each halves at most; keep more")
        evenly = -(-(tokens.N - target) // blocks)
        # More at once where the blocks that follow, halving, would not reach the target.
        return bipartite_plan(keys, max(0, evenly, tokens.N - (target << (blocks - 1))), tokens)

    def forward(self, tokens: Tokens, **cues: Tensor) -> Tokens:
        if self.stage == "encoder":
            return super().forward(tokens, **cues)
        return merge_to(tokens, self.counts(tokens))


def schedule(r: int | tuple[int, float] | Sequence[int], depth: int) -> list[int]:
    """Tokens to take away in each of `depth` blocks, see `Tome`.

    (8, -1) over 12 blocks gives 16,14,13,11,10,8,7,5,4,2,1,0: the line is cut to whole numbers, so its sum
    (91) may be below that of the constant schedule (96).
    """
    problem = f"r must be a count, (count, inflection in [-1,1]) or a list of counts, got {r!r}"
    if isinstance(r, int):
        r = (r, 0.0)
    if isinstance(r, tuple) and len(r) == 2:
        if r[0] < 0 or not -1 <= r[1] <= 1:
            raise ValueError(problem)
        first = int(r[0] * (1 - r[1]))
        last = 2 * r[0] - first
        step = (last - first) / max(1, depth - 1)
        return [int(first + step * layer) for layer in range(depth)]
    if not isinstance(r, Sequence) or any(not isinstance(n, int) or n < 0 for n in r):
        raise ValueError(problem)
    return [*r, *[0] * depth][:depth]
