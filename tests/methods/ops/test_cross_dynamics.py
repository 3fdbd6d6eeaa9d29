"""Occupancy and statistics of clusters, by loops."""

from __future__ import annotations

import math

import numpy as np
import torch

from fewtokens.methods.clustering.kmeans import KMeans
from fewtokens.methods.ops.cross_dynamics import (
    occupancy,
    statistics,
)
from tests.helpers.clips import clip


def adaptive_pool_by_loops(mask: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Averages of floor(i n / p) .. ceil((i+1) n / p) along each axis, by loops."""
    out = np.zeros(shape)
    for index in np.ndindex(*shape):
        part = mask
        for axis, (i, p) in enumerate(zip(index, shape, strict=True)):
            n = mask.shape[axis]
            part = part.take(range(i * n // p, math.ceil((i + 1) * n / p)), axis=axis)
        out[index] = part.mean()
    return out


class TestMap:
    def test_occupancy_is_adaptive_average_pooling(self):
        tokens = clip(T=5, H=4, W=9)
        base = KMeans(6)(tokens)
        values = occupancy(base)
        for b in range(2):
            cells = base.assignment[b].reshape(5, 4, 9).numpy()
            for k in range(6):
                np.testing.assert_allclose(
                    values[b, k], adaptive_pool_by_loops(cells == k, (8, 7, 7)).ravel(), atol=1e-6
                )

    def test_statistics_by_loops(self):
        tokens = clip(T=5, H=4, W=9)
        base = KMeans(6)(tokens)
        values = statistics(base)
        for b in range(2):
            for k in range(6):
                cells = np.argwhere(base.assignment[b].reshape(5, 4, 9).numpy() == k)
                position = (cells + 0.5) / (5, 4, 9)
                span = (cells[:, 0].max() - cells[:, 0].min() + 1) / 5
                expected = [*position.mean(0), *position.std(0), math.log(len(cells) / 180), span]
                np.testing.assert_allclose(values[b, k], expected, atol=1e-5)

    def test_padding_changes_nothing(self):
        alone = KMeans(4)(clip(T=3, B=1))
        padded = clip(T=6, B=1, lengths=[3])
        assignment = torch.nn.functional.pad(alone.assignment, (0, 90), value=-1)
        base = alone.replace(assignment=assignment, grid=padded.grid)
        torch.testing.assert_close(occupancy(base), occupancy(alone))
        torch.testing.assert_close(statistics(base), statistics(alone))
