"""Max-min selection against loops and the published code."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core import registry
from fewtokens.methods.pruning.max_min import MaxMin
from tests.helpers import naive
from tests.helpers.clips import clip
from tests.helpers.naive import cosine


class TestMaxMin:
    @pytest.mark.parametrize("keep", [1, 2, 9, 40])
    def test_against_loops(self, keep):
        tokens = clip(2, 4, 5, 8, 1)
        x = torch.nn.functional.normalize(tokens.features[0].double(), dim=1).numpy()
        mean = x.mean(0)
        survivors = [min(range(40), key=lambda n: cosine(x[n], mean))]
        while len(survivors) < keep:
            rest = [n for n in range(40) if n not in survivors]
            survivors.append(min(rest, key=lambda n: max(cosine(x[n], x[m]) for m in survivors)))
        out = MaxMin(keep)(tokens)
        assert (out.assignment[0] >= 0).nonzero().flatten().tolist() == sorted(survivors)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("keep", [0.6, 0.25])
def test_budgets_against_loops(keep, seed):
    """In the form timed by the speed benchmark."""
    tokens, x = naive.video(seed=seed)
    (method,) = registry.build(f"max_min({keep})")
    naive.assert_same_tokens(method(tokens), naive.max_min(x, method.planned_count(tokens.grid)))
