"""CenterCLIP against loops and the published code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fewtokens
from fewtokens.core import registry
from fewtokens.core.tokens import Tokens
from fewtokens.methods.clustering.centerclip import CenterClip, k_medoids, spectral_rows
from tests.helpers.clips import clip
from tests.helpers.naive import video
from tests.helpers.published import wave


class TestCenterClip:
    def medoids_by_loops(self, x: np.ndarray, k: int) -> list[int]:
        """The medoid of each row, by loops."""
        n = len(x)
        d = np.linalg.norm(x[:, None] - x[None], axis=-1)
        medoids = [int(np.argmax(np.linalg.norm(x, axis=1)))]
        while len(medoids) < k:
            rest = [i for i in range(n) if i not in medoids]
            medoids.append(max(rest, key=lambda i: min(d[i, j] for j in medoids)))
        while True:
            label = [medoids.index(i) if i in medoids else int(np.argmin([d[i, j] for j in medoids])) for i in range(n)]
            updated = []
            for c in range(k):
                members = [i for i in range(n) if label[i] == c]
                updated.append(min(members, key=lambda i: sum(d[i, j] for j in members)))
            if updated == medoids:
                return [medoids[c] for c in label]
            medoids = updated

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("k", [1, 3, 9, 30])
    def test_against_loops(self, seed, k):
        x = torch.randn(1, 30, 5, generator=torch.Generator().manual_seed(seed))
        medoids = k_medoids(x, torch.ones(1, 30, dtype=torch.bool), torch.tensor([k]), 100)[0].tolist()
        assert medoids == self.medoids_by_loops(x[0].double().numpy(), k)

    def test_segments_are_clustered_separately(self):
        out = CenterClip(0.1, frames=2)(clip(6, 4, 5, 8, 1))
        assert out.N == 12
        for m in range(12):
            frames = (out.assignment[0] == m).nonzero().flatten() // 20
            assert len(set((frames // 2).tolist())) == 1
        # A medoid is one of its members, unchanged.
        tokens = clip(6, 4, 5, 8, 1)
        torch.testing.assert_close(out.features, tokens.features.gather(1, out.cell[..., None].expand(-1, -1, 8)))


class TestSpectral:
    def test_rows_span_the_lowest_eigenvectors(self):
        x = torch.randn(1, 30, 6, generator=torch.Generator().manual_seed(0))
        real = torch.ones(1, 30, dtype=torch.bool)
        rows = spectral_rows(x, real, torch.tensor([4]), 5, 1.5)[0].double().numpy()
        d = torch.cdist(x[0].double(), x[0].double()).numpy()
        neighbors = np.zeros((30, 30), dtype=bool)
        for i in range(30):
            neighbors[i, np.argsort(d[i])[:5]] = True  # the token itself first, as in the published code
        weight = np.where(neighbors | neighbors.T, np.exp(-(d**2) / (2 * 1.5**2)), 0.0)
        degree = weight.sum(1)
        laplacian = np.eye(30) - weight / np.sqrt(degree[:, None] * degree[None])
        expected = np.linalg.eigh(laplacian)[1][:, :4]
        # Eigenvectors are unique only up to a rotation; the projection is unique.
        np.testing.assert_allclose(rows @ rows.T, expected @ expected.T, atol=1e-4)

    def test_finds_rings(self):
        """Two concentric circles: the spectral variant separates them, medoids cannot."""
        angle = torch.arange(24) * (2 * torch.pi / 24)
        ring = torch.stack([angle.cos(), angle.sin()], 1)
        tokens = Tokens.from_cells(torch.cat([ring, 4 * ring]).reshape(1, 1, 6, 8, 2))
        inner = torch.arange(48) < 24
        out = CenterClip(2, frames=1, algorithm="spectral", medoid=False)(tokens)
        assert len(set(out.assignment[0, inner].tolist())) == len(set(out.assignment[0, ~inner].tolist())) == 1
        assert out.N == 2

    def test_features_of_any_scale(self):
        tokens, _ = video()
        method = CenterClip(0.3, algorithm="spectral")
        assert torch.equal(method(tokens).assignment, method(tokens.replace(features=100 * tokens.features)).assignment)


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


def test_segments_of_one_token():
    method = fewtokens.create_method("centerclip", keep=1.0, frames=1, algorithm="spectral")
    tokens = Tokens.from_cells(torch.randn(1, 4, 1, 1, 8))
    assert torch.equal(method(tokens).features, tokens.features)
