"""k-means against planted structure; adaptive length."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.methods.clustering.kmeans import KMeans
from fewtokens.methods.ops.token_base import _sample
from tests.helpers import naive
from tests.helpers.planted import planted_clusters, same_partition


@pytest.mark.parametrize(("seed", "labels"), [(0, [0, 1, 2, 0, 2, 2, 3, 3]), (7, [0, 1, 2, 2, 3, 4, 1, 1])])
def test_eight_labels_of_a_seed(seed, labels):
    """Against loops and fixed labels: another hash or initialization would change every published number."""
    tokens, x = naive.video(seed=3)
    expected = torch.tensor(naive.kmeans(x, 6, seed))
    assignment = KMeans(6, seed=seed)(tokens).assignment[0]
    assert same_partition(assignment, expected)
    assert same_partition(assignment[:8], torch.tensor(labels))


class TestKMeans:
    @pytest.mark.parametrize("k", [2, 5, 12])
    def test_finds_planted_directions(self, k):
        tokens, labels = planted_clusters(k)
        out = KMeans(k)(tokens)
        assert same_partition(out.assignment[0], labels)

    def test_means_are_of_raw_tokens(self):
        tokens, _ = planted_clusters(3)
        out = KMeans(3)(tokens)
        for m in range(3):
            members = tokens.features[0, out.assignment[0] == m]
            torch.testing.assert_close(out.features[0, m], members.mean(0))

    def test_the_block_size_changes_nothing(self, monkeypatch):
        tokens, _ = planted_clusters(6, noise=0.3)
        expected = KMeans(6)(tokens)
        monkeypatch.setattr("fewtokens.methods.ops.spherical._MAX_BLOCK_ENTRIES", 50)
        assert torch.equal(KMeans(6)(tokens).assignment, expected.assignment)

    def test_duplicates_give_exactly_k(self):
        x = torch.randn(3, 8)[torch.arange(40) % 3]
        out = KMeans(9)(Tokens.from_cells(x.reshape(1, 1, 1, 40, 8))).check()
        assert out.count.tolist() == [9]
        torch.testing.assert_close(out.unmerge().reshape(40, 8), x)

    def test_seed(self):
        tokens, _ = planted_clusters(30, noise=0.8)
        a, b, c = (KMeans(10, seed=s)(tokens).assignment for s in (0, 0, 1))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)

    @pytest.mark.parametrize("criterion", ["silhouette", "elbow"])
    @pytest.mark.parametrize("k", [5, 12, 20])
    def test_adaptive_length_finds_the_planted_number(self, criterion, k):
        tokens, _ = planted_clusters(k, n=400, noise=0.03)
        out = KMeans(criterion=criterion, k_min=2, k_max=28)(tokens)
        assert abs(out.N - k) <= 1

    @pytest.mark.parametrize("criterion", ["silhouette", "elbow"])
    def test_adaptive_length_of_one_color_is_k_min(self, criterion):
        for seed in range(12):
            color = torch.randn(1, 1, 1, 1, 16, generator=torch.Generator().manual_seed(seed))
            static = Tokens.from_cells(color.expand(1, 8, 6, 6, 16))
            assert KMeans(criterion=criterion, k_min=4, k_max=9)(static).N == 4

    def test_adaptive_length_grows_with_content(self):
        lengths = [KMeans(criterion="silhouette", k_min=2, k_max=24)(planted_clusters(k)[0]).N for k in (3, 9, 18)]
        assert lengths == sorted(lengths)
        assert lengths[0] < lengths[-1]

    def test_adaptive_length_in_a_long_video_uses_a_sample(self, monkeypatch):
        monkeypatch.setattr("fewtokens.methods.ops.token_base._MAX_SAMPLE", 100)
        tokens, labels = planted_clusters(6, n=1000)
        out = KMeans(criterion="silhouette", k_min=2, k_max=12)(tokens)
        assert same_partition(out.assignment[0], labels)

    def test_random_rows_as_the_first_centroids(self):
        tokens, _ = planted_clusters(30, noise=0.8)
        a, b, c = (KMeans(10, seed=s, init="random")(tokens).check().assignment for s in (0, 0, 1))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)

    @pytest.mark.parametrize("criterion", ["fixed", "silhouette"])
    def test_random_rows_of_a_video_do_not_depend_on_the_batch(self, criterion):
        x = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(2))
        both = Tokens.from_cells(x.reshape(2, 1, 5, 8, 8))
        count = torch.tensor([40, 25])
        padded = both.apply(Plan.keep(torch.arange(40) < count[:, None]))
        arguments = {"keep": 6} if criterion == "fixed" else {"criterion": criterion, "k_min": 3, "k_max": 7}
        method = KMeans(init="random", **arguments)
        together = method(padded)
        for b in range(2):
            alone = method(both[b : b + 1].apply(Plan.keep(torch.arange(40)[None] < count[b])))
            assert torch.equal(together.assignment[b], alone.assignment[0])

    def test_a_sample_is_spread_over_the_cells_of_a_frame(self):
        """At even steps it would see the same quarter of the cells in each frame."""
        x = torch.arange(64.0).repeat(16)[None, :, None]
        sample, real = _sample(x, torch.tensor([1024]), torch.tensor([256]), 256, 0)
        assert real.all()
        assert len(sample.unique()) > 55

    def test_invalid_arguments(self):
        for arguments in (
            {"criterion": "gap"},
            {"keep": 4, "criterion": "elbow"},
            {"k_min": 5, "k_max": 4, "criterion": "elbow"},
            {"iterations": 0},
            {"init": "farthest"},
        ):
            with pytest.raises(ValueError, match=r"kmeans|k_min|iterations|init"):
                KMeans(**arguments)
