"""Random dropping: the baseline that every method must beat."""

from __future__ import annotations

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.seeded import uniform_hash


class Random(Reducer):
    """Keeps tokens at random positions, in their original order.

    The positions depend only on the seed and the token's index: they are the same for every video of a batch, on every
    device, with or without padding.

    Args:
        keep: budget, a fraction of the cells (float), a count (int) or "8/frame". Default: 0.25.
        seed: random seed. Default: 0.
    """

    paper = "baseline"
    license = "none needed"
    cost = "O(N log N)"

    def __init__(self, keep: float | int | str = 0.25, *, seed: int = 0) -> None:
        super().__init__()
        self.set_budget(keep)
        self.seed = seed

    def plan(self, tokens: Tokens) -> Plan:
        scores = uniform_hash(self.seed, tokens.N, tokens.device).expand(tokens.B, -1)
        return Plan.top(scores, self.counts(tokens), tokens, num_slots=self.max_slots(tokens))
