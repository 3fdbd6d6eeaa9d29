"""TempMe against loops."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core import registry
from tests.helpers import naive
from tests.helpers.naive import video


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("keep", [0.5, 0.2, 0.06])
@pytest.mark.parametrize("joins", [(2, 2, 3), (3,), ()])
def test_against_loops(keep, seed, joins):
    tokens, x = video(seed=seed)
    (method,) = registry.build(f"tempme({keep}, joins={joins})")
    naive.assert_same_tokens(method(tokens), naive.tempme(x, method.planned_count(tokens.grid), joins))


def test_class_tokens_are_not_matched():
    tokens = video()[0].replace(prefix=torch.randn(1, 6, 12))
    out = registry.build("tempme(0.2)")[0](tokens)
    assert torch.equal(out.prefix, tokens.prefix)
