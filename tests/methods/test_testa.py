"""TESTA against loops."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core import registry
from fewtokens.core.tokens import Tokens
from tests.helpers import naive
from tests.helpers.naive import num_kept_frames, video


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("keep", [0.5, 0.2, 0.06])
@pytest.mark.parametrize("time", [0.0, 0.26, 1.0])
def test_against_loops(keep, seed, time):
    tokens, x = video(seed=seed)
    (method,) = registry.build(f"testa({keep}, time={time})")
    target = int(keep * 120 + 1e-6)
    naive.assert_same_tokens(method(tokens), naive.testa(x, target, num_kept_frames(target, time)))


def test_frames_are_ranked_by_the_mean_of_their_patches():
    """The mode of continuous similarities is their minimum, so a single changed patch would decide."""
    static = torch.randn(1, 1, 4, 4, 16).expand(-1, 4, -1, -1, -1).clone()
    static[:, 1, 0, 0] = -static[:, 0, 0, 0]  # one patch of frame 1 is negated
    static[:, 2:] += 0.8 * torch.randn(1, 2, 4, 4, 16, generator=torch.Generator().manual_seed(1))
    out = registry.build("testa(48, time=1.0)")[0](Tokens.from_cells(static))
    assert out.sizes[0, :16].tolist() == [2.0] * 16  # frames 0 and 1 are merged
