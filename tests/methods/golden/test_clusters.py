"""k-means and DPC-kNN against scikit-learn, slow versions and planted structure."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fewtokens.core.tokens import Tokens
from fewtokens.methods.clustering.dpc_knn import DpcKnn
from fewtokens.methods.clustering.kmeans import KMeans
from fewtokens.methods.ops import spherical
from fewtokens.methods.ops.density import density_peaks, nearest_centre


def planted(k: int, n: int = 240, C: int = 48, noise: float = 0.05, seed: int = 0) -> tuple[Tokens, torch.Tensor]:
    """n tokens around k well separated directions, of different lengths; and their true labels."""
    g = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(k, C, generator=g), dim=1)
    labels = torch.randint(0, k, (n,), generator=g)
    labels[:k] = torch.arange(k)
    length = 1 + 4 * torch.rand(n, 1, generator=g)
    x = (directions[labels] + noise * torch.randn(n, C, generator=g)) * length
    return Tokens.from_cells(x.reshape(1, 1, 1, n, C)), labels


def agree(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal partitions under any names."""
    return torch.equal(a[:, None] == a[None], b[:, None] == b[None])


class TestKMeans:
    @pytest.mark.parametrize("k", [2, 5, 12])
    def test_finds_planted_directions(self, k):
        tokens, labels = planted(k)
        out = KMeans(k)(tokens)
        assert agree(out.assignment[0], labels)

    def test_means_are_of_raw_tokens(self):
        tokens, _ = planted(3)
        out = KMeans(3)(tokens)
        for m in range(3):
            members = tokens.features[0, out.assignment[0] == m]
            torch.testing.assert_close(out.features[0, m], members.mean(0))

    def test_lloyd_equals_scikit_learn_on_the_sphere(self):
        """From equal starts, with assignments that agree for unit vectors, after one iteration."""
        cluster = pytest.importorskip("sklearn.cluster")
        x = F.normalize(torch.randn(1, 300, 16, generator=torch.Generator().manual_seed(3)), dim=2)
        start, k = x[:, :7].clone(), torch.tensor([7])
        fit = spherical.assign(x, torch.ones(1, 300, dtype=torch.bool), start, k)
        other = cluster.KMeans(7, init=start[0].numpy(), n_init=1, max_iter=1).fit(x[0].numpy())
        ours = fit.sums[0] / fit.counts[0][:, None]
        np.testing.assert_allclose(ours.numpy(), other.cluster_centers_, atol=1e-5)

    def test_never_worse_than_its_start(self):
        tokens, _ = planted(20, noise=0.6)
        x = F.normalize(tokens.features, dim=2)
        real, k = tokens.mask, torch.tensor([10])
        start = x[:, :10].clone()
        values = [
            float(spherical.assign(x, real, spherical.lloyd(x, real, start, k, n, 0.0), k).distortion)
            for n in (1, 2, 4, 8, 30)
        ]
        assert values == sorted(values, reverse=True)

    def test_blocks_change_nothing(self, monkeypatch):
        tokens, _ = planted(6, noise=0.3)
        whole = KMeans(6)(tokens)
        monkeypatch.setattr("fewtokens.methods.ops.spherical._ENTRIES_AT_ONCE", 50)
        assert torch.equal(KMeans(6)(tokens).assignment, whole.assignment)

    def test_duplicates_still_give_exactly_k(self):
        x = torch.randn(3, 8)[torch.arange(40) % 3]
        out = KMeans(9)(Tokens.from_cells(x.reshape(1, 1, 1, 40, 8))).check()
        assert out.count.tolist() == [9]
        torch.testing.assert_close(out.unmerge().reshape(40, 8), x)

    def test_seed(self):
        tokens, _ = planted(30, noise=0.8)
        a, b, c = (KMeans(10, seed=s)(tokens).assignment for s in (0, 0, 1))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)

    @pytest.mark.parametrize("criterion", ["silhouette", "elbow"])
    @pytest.mark.parametrize("k", [5, 12, 20])
    def test_adaptive_length_finds_the_planted_number(self, criterion, k):
        tokens, _ = planted(k, n=400, noise=0.03)
        out = KMeans(criterion=criterion, k_min=2, k_max=28)(tokens)
        assert abs(out.N - k) <= 1

    @pytest.mark.parametrize("criterion", ["silhouette", "elbow"])
    def test_adaptive_length_of_one_colour_is_k_min(self, criterion):
        still = Tokens.from_cells(torch.randn(1, 1, 1, 1, 16).expand(1, 8, 6, 6, 16))
        assert KMeans(criterion=criterion, k_min=4, k_max=9)(still).N == 4

    def test_adaptive_length_grows_with_content(self):
        lengths = [KMeans(criterion="silhouette", k_min=2, k_max=24)(planted(k)[0]).N for k in (3, 9, 18)]
        assert lengths == sorted(lengths)
        assert lengths[0] < lengths[-1]

    def test_adaptive_length_in_a_long_video_uses_a_sample(self, monkeypatch):
        monkeypatch.setattr("fewtokens.methods.ops.token_base._SAMPLE", 100)
        tokens, labels = planted(6, n=1000)
        out = KMeans(criterion="silhouette", k_min=2, k_max=12)(tokens)
        assert agree(out.assignment[0], labels)

    def test_silhouette_equals_scikit_learn(self):
        metrics = pytest.importorskip("sklearn.metrics")
        tokens, _ = planted(5, n=90, noise=0.4)
        x = F.normalize(tokens.features, dim=2)
        fit = spherical.assign(x, tokens.mask, x[:, :6].clone(), torch.tensor([6]))
        expected = metrics.silhouette_score(x[0].numpy(), fit.labels[0].numpy(), metric="cosine")
        assert float(spherical.silhouette(x, tokens.mask, fit)) == pytest.approx(expected, abs=1e-5)

    def test_silhouette_sees_the_labels(self):
        """The reference code's does not, and so always takes k_min."""
        tokens, labels = planted(5)
        x = F.normalize(tokens.features, dim=2)

        def score(named: torch.Tensor) -> float:
            one_hot = F.one_hot(named, 5).float()
            fit = spherical.Assignment(named[None], (one_hot.T @ x[0])[None], one_hot.sum(0)[None], torch.zeros(1))
            return float(spherical.silhouette(x, tokens.mask, fit))

        shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
        assert score(labels) > 0.8 > 0.1 > score(shuffled)

    def test_elbow_is_the_farthest_point_below_the_chord(self):
        curve = torch.tensor([[10.0, 4, 3, 2, 1, 0], [5, 4, 3, 2, 1, 0], [3, 3, 3, 3, 3, 3]])
        assert spherical.below_chord(curve).argmax(1).tolist() == [1, 0, 0]

    def test_bad_arguments(self):
        for wrong in (
            {"criterion": "gap"},
            {"keep": 4, "criterion": "elbow"},
            {"k_min": 5, "k_max": 4, "criterion": "elbow"},
            {"iterations": 0},
        ):
            with pytest.raises(ValueError, match=r"kmeans|k_min|iterations"):
                KMeans(**wrong)


def slow_peaks(x: torch.Tensor, k: int) -> torch.Tensor:
    n = len(x)
    d = torch.cdist(x.double(), x.double()) / x.shape[1] ** 0.5
    rho = [float((-d[i].sort().values[:k].square().mean()).exp()) for i in range(n)]
    score = []
    for i in range(n):
        denser = [float(d[i, j]) for j in range(n) if rho[j] > rho[i] or (rho[j] == rho[i] and j < i)]
        score.append(rho[i] * (min(denser) if denser else float(d.max())))
    return torch.tensor(score)


class TestDpcKnn:
    @pytest.mark.parametrize("neighbors", [1, 4, 7])
    def test_scores_against_a_double_loop(self, neighbors):
        x = torch.randn(60, 6, generator=torch.Generator().manual_seed(neighbors))
        scores = density_peaks(x[None], torch.ones(1, 60, dtype=torch.bool), neighbors)
        torch.testing.assert_close(scores[0].exp(), slow_peaks(x, neighbors).float(), rtol=1e-3, atol=1e-5)

    def test_blocks_change_nothing(self, monkeypatch):
        x, mask = torch.randn(2, 50, 6), torch.ones(2, 50, dtype=torch.bool)
        whole = density_peaks(x, mask, 5)
        near = nearest_centre(x, x[:, :9], mask[:, :9])
        monkeypatch.setattr("fewtokens.methods.ops.density._ENTRIES_AT_ONCE", 300)
        torch.testing.assert_close(density_peaks(x, mask, 5), whole)
        assert torch.equal(nearest_centre(x, x[:, :9], mask[:, :9]), near)

    def test_finds_planted_clusters(self):
        tokens, labels = planted(8, noise=0.02)
        tokens = tokens.replace(features=F.normalize(tokens.features, dim=2))
        assert agree(DpcKnn(8)(tokens).assignment[0], labels)

    def test_large_features_do_not_underflow(self):
        tokens, _ = planted(8)
        big = tokens.replace(features=tokens.features * 1000)
        scores = density_peaks(big.features, big.mask, 7)
        assert len(scores.unique()) > 200
