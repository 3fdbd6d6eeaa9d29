"""Token Merging (ToMe) between the blocks of an encoder, arXiv 2210.09461."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.bipartite import bipartite_plan
from fewtokens.methods.ops.schedule import merges_to, schedule


class TomeInEncoder(Reducer):
    """In every block r tokens of each frame merge, between attention and MLP, as in the paper.

    Token Merging (arXiv 2210.09461). Tokens are matched on the attention keys (mean over heads); class and register
    tokens never merge, and by default the encoder weighs attention by the sizes. On the features that an encoder gives:
    `tome`.

    Args:
        keep: share of the cells, reached evenly over the blocks; 0.25 by default.
        r: instead, tokens to take away in each block: a number; (r, inflection) for a linear schedule from
            r*(1-inflection) to r*(1+inflection), as in the paper; or a list, one for each block, zeros after its end.
    """

    stage = "encoder"
    paper = "Token Merging: Your ViT But Faster, arXiv 2210.09461"
    license = "written from the paper; the reference code is CC BY-NC 4.0"
    cost = "O(N^2 C / 4) a frame and block"

    def __init__(
        self, keep: float | str | None = None, *, r: int | tuple[int, float] | Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.take_budget(keep, default=0.25, r=r)
        if r is not None:
            schedule(r, 1)
        self.r = r

    @property
    def needs(self) -> tuple[str, ...]:
        return ("keys",)

    def plan(self, tokens: Tokens, *, keys: Tensor, layer: int, depth: int) -> Plan:
        """One block's merging. `keys` [B,N,D]; `layer` counts from 0 of `depth` blocks."""
        if self.r is not None:
            return bipartite_plan(keys, schedule(self.r, depth)[layer], tokens)
        assert self.budget is not None
        r = merges_to(tokens.N, self.budget.count(tokens.grid), layer, depth, spec=self.spec)
        return bipartite_plan(keys, r, tokens)
