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


def padded_rows(lengths: list[int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows around a few directions, some of them equal, padded with zeros."""
    generator = torch.Generator().manual_seed(seed)
    n = max(lengths)
    centers = torch.randn(len(lengths), 30, 12, generator=generator)
    pick = torch.randint(0, 30, (len(lengths), n), generator=generator)
    x = centers.gather(1, pick[..., None].expand(-1, -1, 12))
    x = x + 0.4 * torch.randn(x.shape, generator=generator) * (torch.arange(n) % 5 > 0)[:, None]
    real = torch.arange(n) < torch.tensor(lengths)[:, None]
    return F.normalize(x, dim=2) * real[..., None], real


@pytest.mark.parametrize("seed", range(4))
def test_lloyd_equals_full_assignments(seed):
    """Comparisons of open rows only, and sums that change by the rows that move, are the plain algorithm.

    40 centroids of 12 channels have bounds for groups of 4. One centroid has no direction at the start.
    """
    x, real = padded_rows([400, 90, 251], seed)
    k = torch.tensor([40, 7, 25])
    start = F.normalize(torch.randn(3, 40, 12, generator=torch.Generator().manual_seed(seed)), dim=2)
    start[0, 3] = 0
    centroids = start
    for iterations in range(12):
        fast, fit = spherical.lloyd(x, real, start, k, iterations, 0.0)
        plain = spherical.assign(x, real, centroids, k)
        assert torch.equal(fit.labels, plain.labels)
        torch.testing.assert_close(fast, centroids)
        torch.testing.assert_close(fit.sums, plain.sums, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(fit.counts, plain.counts)
        moved = F.normalize(plain.sums, dim=2)
        centroids = torch.where(plain.sums.norm(dim=2, keepdim=True) > 0, moved, centroids)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rows", [1, 60])
def test_few_rows_are_compared_once_they_are_settled(seed, rows, monkeypatch):
    """Near convergence only rows between two centroids are compared; the labels are those of the plain algorithm."""
    x, real = padded_rows([500], seed)
    x[:, rows:60] = x[:, :1]
    start, k = x[:, 60:80].clone(), torch.tensor([20])
    compared = []
    best = spherical._best

    def count(rows, *args):
        compared.append(rows.shape[1])
        return best(rows, *args)

    monkeypatch.setattr(spherical, "_best", count)
    centroids, fit = spherical.lloyd(x, real, start, k, 30, 0.0)
    assert torch.equal(fit.labels, spherical.assign(x, real, centroids, k).labels)
    assert min(compared) < 150


@pytest.mark.parametrize("seed", range(3))
def test_seeds_know_their_nearest_centroids(seed):
    x, real = padded_rows([300, 200], seed)
    k = torch.tensor([70, 20])
    uniforms = torch.rand(102, 5, generator=torch.Generator().manual_seed(seed))
    seeds = spherical.kmeans_plus_plus(x, real, k, 70, uniforms)
    fit = spherical.assign(x, real, seeds.centroids, k)
    similarity = (x * seeds.centroids.gather(1, seeds.labels[..., None].expand(-1, -1, 12))).sum(2)
    torch.testing.assert_close(similarity[real], seeds.similarity[real], atol=2e-6, rtol=0)
    assert bool((seeds.labels < k[:, None]).all())
    assert float((fit.distortion - ((1 - seeds.similarity) * real).sum(1) / real.sum(1)).abs().max()) < 1e-5


def test_seeds_of_a_video_do_not_depend_on_the_batch():
    x, real = padded_rows([300, 200], 0)
    uniforms = torch.rand(92, 5, generator=torch.Generator().manual_seed(0))
    both = spherical.kmeans_plus_plus(x, real, torch.tensor([60, 33]), 60, uniforms)
    alone = spherical.kmeans_plus_plus(x[1:, :200], real[1:, :200], torch.tensor([33]), 33, uniforms)
    assert torch.equal(both.centroids[1:, :33], alone.centroids)
    assert torch.equal(both.labels[1:, :200], alone.labels)
