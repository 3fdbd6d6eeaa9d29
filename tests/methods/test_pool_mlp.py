"""The pooled MLP depends only on the mean."""

from __future__ import annotations

import torch

from fewtokens.core.tokens import Tokens
from fewtokens.methods.learned.pool_mlp import PoolMlp


def test_pool_mlp_depends_only_on_the_mean():
    learner = PoolMlp("5/frame", dim=8)
    x = torch.randn(1, 4, 4, 8)
    mixed = x.flatten(1, 2)[:, torch.randperm(16)].reshape(x.shape)
    torch.testing.assert_close(learner.learn(x)[0], learner.learn(mixed)[0])
    assert learner(Tokens.from_cells(x[:, None])).features.shape == (1, 5, 8)
