"""Density peaks against loops."""

from __future__ import annotations

import pytest
import torch

from fewtokens.methods.ops.density import cluster_around_peaks, density_peaks, nearest_center
from tests.helpers.planted import planted_clusters


def density_peaks_by_loops(x: torch.Tensor, k: int) -> torch.Tensor:
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
        torch.testing.assert_close(scores[0].exp(), density_peaks_by_loops(x, neighbors).float(), rtol=1e-3, atol=1e-5)

    def test_the_block_size_changes_nothing(self, monkeypatch):
        x, mask = torch.randn(2, 50, 6), torch.ones(2, 50, dtype=torch.bool)
        expected = density_peaks(x, mask, 5)
        nearest = nearest_center(x, x[:, :9], mask[:, :9])
        monkeypatch.setattr("fewtokens.methods.ops.density._MAX_BLOCK_ENTRIES", 300)
        torch.testing.assert_close(density_peaks(x, mask, 5), expected)
        assert torch.equal(nearest_center(x, x[:, :9], mask[:, :9]), nearest)

    def test_large_features_do_not_underflow(self):
        tokens, _ = planted_clusters(8)
        large = tokens.replace(features=tokens.features * 1000)
        scores = density_peaks(large.features, large.mask, 7)
        assert len(scores.unique()) > 200


def scores_by_tables(x: torch.Tensor, k: int) -> torch.Tensor:
    d = torch.cdist(x.double(), x.double()) / x.shape[1] ** 0.5
    d.fill_diagonal_(0)
    density = -d.sort(1).values[:, :k].square().mean(1)
    rank = density.argsort(descending=True, stable=True).argsort()
    delta = d.masked_fill(rank[None] >= rank[:, None], torch.inf).amin(1)
    return density + torch.where(rank == 0, d.max(), delta).log()


@pytest.mark.parametrize("entries", [700, 20_000, 1 << 22])
@pytest.mark.parametrize("neighbors", [1, 3, 7, 12])
def test_a_padded_batch_equals_full_tables(neighbors, entries, monkeypatch):
    monkeypatch.setattr("fewtokens.methods.ops.density._MAX_BLOCK_ENTRIES", entries)
    lengths = [230, 9, 120]
    x = torch.randn(3, 230, 5, generator=torch.Generator().manual_seed(neighbors))
    mask = torch.arange(230) < torch.tensor(lengths)[:, None]
    scores = density_peaks(x.masked_fill(~mask[..., None], 0), mask, neighbors)
    for row, n in enumerate(lengths):
        expected = scores_by_tables(x[row, :n], min(neighbors, n)).float()
        torch.testing.assert_close(scores[row, :n], expected, atol=2e-4, rtol=1e-4)
        assert bool((scores[row, n:] == -torch.inf).all())


def test_each_token_joins_its_nearest_peak():
    x = torch.randn(2, 200, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(200) < torch.tensor([[200], [150]])
    label, clusters = cluster_around_peaks(x, mask, torch.tensor([30, 12]), 5)
    assert clusters.count.tolist() == [30, 12]
    score = density_peaks(x, mask, 5)
    for row, (k, n) in enumerate([(30, 200), (12, 150)]):
        peaks = score[row].topk(k).indices.sort().values
        assert torch.equal(label[row, :n], torch.cdist(x[row, :n], x[row, peaks]).argmin(1))
