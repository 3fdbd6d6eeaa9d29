"""Token Merging (ToMe) between the blocks of an encoder, arXiv 2210.09461."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.bipartite import bipartite_plan
from fewtokens.methods.ops.schedule import num_to_remove, schedule


class TomeInEncoder(Reducer):
    """In every block, merges the most similar tokens of each frame.

    Token Merging (arXiv 2210.09461), with r pairs per block merged between attention and MLP. Tokens are matched on the
    attention keys (mean over heads); class and register tokens never merge, and by default the encoder weights
    attention by the sizes (proportional attention). On the features of an encoder's output: `tome`.

    Args:
        keep: budget, reached evenly over the blocks: a fraction of the cells (float) or "8/frame". Default: 0.25.
        r: tokens removed per block in place of the budget: an integer; (r, inflection) for a linear schedule from
            r*(1-inflection) to r*(1+inflection), as in the paper; or a list with one integer per block, zeros after its
            end.
    """

    stage = "encoder"
    paper = "Token Merging: Your ViT But Faster, arXiv 2210.09461"
    license = "written from the paper; the reference code is CC BY-NC 4.0"
    cost = "O(N^2 C / 4) per frame and block, with N tokens of a frame"

    def __init__(
        self, keep: float | str | None = None, *, r: int | tuple[int, float] | Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.set_budget(keep, default=0.25, r=r)
        if r is not None:
            schedule(r, 1)
        self.r = r

    @property
    def needs(self) -> tuple[str, ...]:
        return ("keys",)

    def plan(self, tokens: Tokens, *, keys: Tensor, layer: int, depth: int) -> Plan:
        """Returns one block's merging plan, for `keys` [B,N,D]; `layer` counts from 0 of `depth` blocks."""
        if self.r is not None:
            return bipartite_plan(keys, schedule(self.r, depth)[layer], tokens)
        assert self.budget is not None
        r = num_to_remove(tokens.N, self.budget.count(tokens.grid), layer, depth, spec=self.spec)
        return bipartite_plan(keys, r, tokens)
