"""ToMe over full videos, against loops."""

from __future__ import annotations

import pytest

from fewtokens.core import registry
from tests.helpers import naive
from tests.helpers.naive import video


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("keep", [0.5, 0.2, 0.06])
@pytest.mark.parametrize("within", ["video", "frame"])
@pytest.mark.parametrize("W", [4, 5])
def test_against_loops(keep, seed, within, W):
    tokens, x = video(W=W, H=3, seed=seed)
    (method,) = registry.build(f"tome_video({keep}, within='{within}')")
    naive.assert_same_tokens(method(tokens), naive.tome_video(x, method.planned_count(tokens.grid), within))
