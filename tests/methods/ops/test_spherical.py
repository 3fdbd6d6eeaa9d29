"""Spherical k-means against scikit-learn, worked examples and planted structure."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fewtokens.methods.ops import spherical
from tests.helpers.planted import planted_clusters


class TestKMeans:
    def test_lloyd_equals_scikit_learn_on_the_sphere(self):
        """From the same start, after one iteration; assignments by cosine and distance agree for unit vectors."""
        cluster = pytest.importorskip("sklearn.cluster")
        x = F.normalize(torch.randn(1, 300, 16, generator=torch.Generator().manual_seed(3)), dim=2)
        start, k = x[:, :7].clone(), torch.tensor([7])
        fit = spherical.assign(x, torch.ones(1, 300, dtype=torch.bool), start, k)
        other = cluster.KMeans(7, init=start[0].numpy(), n_init=1, max_iter=1).fit(x[0].numpy())
        centers = fit.sums[0] / fit.counts[0][:, None]
        np.testing.assert_allclose(centers.numpy(), other.cluster_centers_, atol=1e-5)

    def test_never_worse_than_its_start(self):
        tokens, _ = planted_clusters(20, noise=0.6)
        x = F.normalize(tokens.features, dim=2)
        real, k = tokens.mask, torch.tensor([10])
        start = x[:, :10].clone()
        values = [
            float(spherical.assign(x, real, spherical.lloyd(x, real, start, k, n, 0.0)[0], k).distortion)
            for n in (1, 2, 4, 8, 30)
        ]
        assert values == sorted(values, reverse=True)

    def test_silhouette_equals_scikit_learn(self):
        metrics = pytest.importorskip("sklearn.metrics")
        tokens, _ = planted_clusters(5, n=90, noise=0.4)
        x = F.normalize(tokens.features, dim=2)
        fit = spherical.assign(x, tokens.mask, x[:, :6].clone(), torch.tensor([6]))
        expected = metrics.silhouette_score(x[0].numpy(), fit.labels[0].numpy(), metric="cosine")
        assert float(spherical.silhouette(x, tokens.mask, fit)) == pytest.approx(expected, abs=1e-5)

    def test_silhouette_depends_on_the_labels(self):
        """The reference code's silhouette ignores them, and therefore always selects k_min."""
        tokens, labels = planted_clusters(5)
        x = F.normalize(tokens.features, dim=2)

        def score(labels: torch.Tensor) -> float:
            one_hot = F.one_hot(labels, 5).float()
            fit = spherical.Assignment(labels[None], (one_hot.T @ x[0])[None], one_hot.sum(0)[None], torch.zeros(1))
            return float(spherical.silhouette(x, tokens.mask, fit))

        shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
        assert score(labels) > 0.8 > 0.1 > score(shuffled)

    def test_elbow_is_the_farthest_point_below_the_chord(self):
        curve = torch.tensor([[10.0, 4, 3, 2, 1, 0], [5, 4, 3, 2, 1, 0], [3, 3, 3, 3, 3, 3]])
        assert spherical.below_chord(curve).argmax(1).tolist() == [1, 0, 0]


@pytest.mark.parametrize("seed", range(6))
def test_silhouettes_of_a_padded_batch_equal_scikit_learn(seed):
    """With arbitrary labels and clusters of one, on videos of unequal length."""
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(seed)
    lengths, k = [30, 12, 9], 8
    x = F.normalize(torch.randn(3, 30, 5, generator=generator), dim=2)
    real = torch.arange(30) < torch.tensor(lengths)[:, None]
    labels = torch.randint(0, 3, (3, 30), generator=generator)
    labels[:, :5] = torch.tensor([3, 4, 5, 6, 7])  # one member each
    one_hot = F.one_hot(labels, k).float() * real[..., None]
    labels = labels.masked_fill(~real, -1)
    fit = spherical.Assignment(labels, one_hot.transpose(1, 2) @ x, one_hot.sum(1), torch.zeros(3))
    scores = spherical.silhouette(x, real, fit)
    for b, n in enumerate(lengths):
        expected = metrics.silhouette_score(x[b, :n].double().numpy(), labels[b, :n].numpy(), metric="cosine")
        assert float(scores[b]) == pytest.approx(expected, abs=1e-5)
