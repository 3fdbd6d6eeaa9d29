"""Numbers that the published codes give, each run once on the features of `wave` at the commit that is named."""

from __future__ import annotations

import pytest
import torch

from fewtokens import registry
from fewtokens.tokens import Tokens


def wave(T: int, H: int, W: int, C: int, step: float = 0.37) -> Tokens:
    """Features sin(i**1.5 * step) in raster order, made in float64."""
    x = torch.sin(torch.arange(T * H * W * C, dtype=torch.float64) ** 1.5 * step)
    return Tokens.from_cells(x.float().reshape(1, T, H, W, C))


@pytest.mark.parametrize(
    ("spec", "cells"),
    [
        # vbdi/divprune 799e2d9, DivPrune, threshold_ratio 0.25
        ("max_min(8, start='isolated')", [2, 7, 8, 11, 18, 19, 22, 31]),
        # mzhaoshuai/CenterCLIP 886fe73, batch_fast_kmedoids, K 6
        ("centerclip(6)", [1, 2, 5, 19, 22, 28]),
        # the same, batch_spectral_clustering, K 6, KNN, knn_k 10, sigma 2
        ("centerclip(6, algorithm='spectral', sigma=2.0)", [1, 6, 14, 21, 25, 26]),
    ],
)
def test_kept_cells(spec, cells):
    (method,) = registry.build(spec)
    assert method(wave(2, 4, 4, 6)).cell[0].tolist() == cells
