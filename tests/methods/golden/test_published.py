"""Numbers that the published codes give, each run once on the features of `wave` at the commit that is named."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core import registry
from fewtokens.core.tokens import Tokens
from fewtokens.encoders.frames import patchify
from fewtokens.methods.merging.holitom import best_windows


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


def test_visual_words_without_a_vocabulary():
    """wearepal/visual-word-tokenizer d2d6759, top_k 6 of 16 patches of 2 x 2, on frames normalized as CLIP's."""
    x = (torch.sin(torch.arange(2 * 3 * 8 * 8, dtype=torch.float64) ** 1.5 * 0.37) + 1) / 2
    frames = x.float().reshape(1, 2, 3, 8, 8)
    cells = Tokens.from_cells(torch.zeros(1, 2, 4, 4, 1))
    out = registry.build("visual_words(12)")[0](cells, pixels=patchify(frames, 1, 2))
    # Of raw pixels it would be [4, 5, 6, 10, 12, 13, 18, 19, 20, 25, 29, 30].
    assert out.cell[0].tolist() == [4, 6, 7, 10, 11, 12, 18, 20, 23, 25, 29, 30]


def test_holitom_takes_the_shorter_of_equal_windows():
    """cokeshao/HoliTom e9b2972, select_static_windows: [(0, 1), (2, 3)], which saves 3 as [(0, 3)] does."""
    # One place stays over all four frames, another over the last two.
    runs = torch.tensor([[[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 1, 0]]])
    first, last = best_windows(runs, torch.ones(1, 4, dtype=torch.bool))
    assert first[0].tolist() == [0, 0, 2, 2]
    assert last[0].tolist() == [1, 1, 3, 3]
