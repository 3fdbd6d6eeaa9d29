"""Random drop: the baseline that every method must beat."""

from __future__ import annotations

from fewtokens.core.method import Reducer
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.ops.seeded import uniform_hash


class Random(Reducer):
    """Keeps tokens at random places, in their order.

    The places follow from the seed and the token's number alone: equal for every video of a batch, on every
    device, padded or not.

    Args:
        keep: share of the cells (float) or count (int).
        seed: another seed, other places.
    """

    paper = "baseline"
    license = "none needed"
    cost = "O(N log N)"

    def __init__(self, keep: float | int | str = 0.25, *, seed: int = 0) -> None:
        super().__init__()
        self.take_budget(keep)
        self.seed = seed

    def plan(self, tokens: Tokens) -> Plan:
        scores = uniform_hash(self.seed, tokens.N, tokens.device).expand(tokens.B, -1)
        return Plan.top(scores, self.counts(tokens), tokens, num_slots=self.max_slots(tokens))
