"""Methods that merge within frames, windows, clips and segments, against loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fewtokens.core import registry
from fewtokens.core.tokens import Tokens
from fewtokens.methods.clustering.centerclip import CenterClip, spectral_rows
from fewtokens.methods.merging.prunevid import PruneVid, contiguous
from fewtokens.methods.ops.groups import share_out
from tests.helpers.clips import clip
from tests.methods.golden import naive


def video(T=6, H=4, W=5, C=12, seed=0) -> tuple[Tokens, np.ndarray]:
    tokens = clip(T, H, W, C, 1, seed=seed)
    return tokens, tokens.features[0].double().numpy().reshape(T, H, W, C)


def frames_left(target: int, time: float) -> int:
    """Of the 6 frames of 20 cells of `video`: the power `time` of the budget's share, enough for it and no more."""
    return min(target, max(round(6 * (target / 120) ** time), -(-target // 20)))


@pytest.mark.parametrize("total", [1, 3, 7, 12, 20])
def test_places_are_shared_out(total):
    sizes, weights = [5, 0, 2, 13], [1.0, 9.0, 4.0, 2.5]
    for weight in (None, weights):
        ours = share_out(
            torch.tensor([total]), torch.tensor([sizes]), None if weight is None else torch.tensor([weight])
        )
        assert ours[0].tolist() == naive.share(total, sizes, weight)


@pytest.mark.parametrize("seed", range(2))
class TestWhatStays:
    """The selectors once more, in the form that the benchmark of speed times."""

    @pytest.mark.parametrize("keep", [0.6, 0.25])
    @pytest.mark.parametrize("name", ["evs", "vidcom2", "max_min"])
    def test_budgets(self, name, keep, seed):
        tokens, x = video(seed=seed)
        (method,) = registry.build(f"{name}({keep})")
        naive.same_tokens(method(tokens), getattr(naive, name)(x, method.planned_count(tokens.grid)))

    @pytest.mark.parametrize("value", [0.3, 0.8])
    @pytest.mark.parametrize("name", ["dtd", "dycoke", "frame_fusion"])
    def test_thresholds(self, name, value, seed):
        tokens, x = video(T=7, seed=seed)
        naive.same_tokens(registry.build(f"{name}({value})")[0](tokens), getattr(naive, name)(x, value))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("keep", [0.5, 0.2, 0.06])
class TestAgainstLoops:
    @pytest.mark.parametrize("within", ["video", "frame"])
    @pytest.mark.parametrize("W", [4, 5])
    def test_tome_video(self, keep, seed, within, W):
        tokens, x = video(W=W, H=3, seed=seed)
        (method,) = registry.build(f"tome_video({keep}, within='{within}')")
        naive.same_tokens(method(tokens), naive.tome_video(x, method.planned_count(tokens.grid), within))

    @pytest.mark.parametrize("window", [2, 3, 7])
    def test_merge_windows(self, keep, seed, window):
        tokens, x = video(H=5, W=6, seed=seed)
        (method,) = registry.build(f"merge_windows({keep}, window={window})")
        out = method(tokens)
        # The most for each window that fit into the budget, at least 1.
        sides = [[min(window, side - start) for start in range(0, side, window)] for side in (5, 6)]
        whole = [a * b for a, b in itertools.product(*sides)]
        fits = [k for k in range(1, window**2 + 1) if 6 * sum(min(k, n) for n in whole) <= int(keep * 6 * 30 + 1e-6)]
        naive.same_tokens(out, naive.merge_windows(x, max(fits, default=1), window))
        # Whole windows have equally many.
        assert method.planned_count(tokens.grid) == out.N

    @pytest.mark.parametrize("joins", [(2, 2, 3), (3,), ()])
    def test_tempme(self, keep, seed, joins):
        tokens, x = video(seed=seed)
        (method,) = registry.build(f"tempme({keep}, joins={joins})")
        naive.same_tokens(method(tokens), naive.tempme(x, method.planned_count(tokens.grid), joins))

    @pytest.mark.parametrize("time", [0.0, 0.26, 1.0])
    def test_testa(self, keep, seed, time):
        tokens, x = video(seed=seed)
        (method,) = registry.build(f"testa({keep}, time={time})")
        target = int(keep * 120 + 1e-6)
        naive.same_tokens(method(tokens), naive.testa(x, target, frames_left(target, time)))

    @pytest.mark.parametrize("time", [0.0, 0.5, 1.0])
    def test_lftr(self, keep, seed, time):
        tokens, x = video(seed=seed)
        (method,) = registry.build(f"lftr({keep}, time={time})")
        target = int(keep * 120 + 1e-6)
        naive.same_tokens(method(tokens), naive.lftr(x, target, frames_left(target, time)))

    @pytest.mark.parametrize("budget", [True, False])
    def test_metok(self, keep, seed, budget):
        tokens, x = video(T=9, seed=seed)
        spec = f"keep={keep}, " if budget else ""
        (method,) = registry.build(f"metok({spec}events=3, key_events=1, key_frames=2)")
        target = method.planned_count(tokens.grid)
        naive.same_tokens(method(tokens), naive.metok(x, target, 3, 1, 2))


class TestPruneVid:
    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize(("segments", "tau"), [(0.25, 0.8), (0.5, 0.5), (0.1, 0.3), (1.0, 0.8)])
    def test_against_loops(self, seed, segments, tau):
        tokens, x = video(T=8, H=5, W=5, seed=seed)
        method = PruneVid(tau=tau, segments=segments, neighbors=4)
        naive.same_tokens(method(tokens), naive.prunevid(x, tau, segments, 0.5, 4))

    def test_runs_become_contiguous(self):
        """In one padded batch, so that videos with many stretches stand beside videos with few."""
        generator = np.random.default_rng(0)
        rows = []
        for number in range(300):
            labels = generator.integers(0, 1 + number % 4, generator.integers(1, 16))
            rows.append(np.repeat(labels, generator.integers(1, 1 + number % 3 + 1, len(labels)))[:20].tolist())
        T = max(len(row) for row in rows)
        there = torch.tensor([[True] * len(row) + [False] * (T - len(row)) for row in rows])
        ours = contiguous(torch.tensor([row + [T] * (T - len(row)) for row in rows]), there)
        for row, first in zip(rows, ours.tolist(), strict=True):
            assert first == naive.contiguous(row) + list(range(len(row), T))

    def test_a_segment_of_one_frame_has_nothing_static(self):
        """The reference code divides 0 by 0 there."""
        tokens, _ = video(T=1)
        assert PruneVid(ratio=1.0)(tokens).N == tokens.N

    def test_a_still_video_is_one_frame_at_most(self):
        one = torch.randn(1, 1, 4, 4, 8)
        tokens = Tokens.from_cells(one.expand(-1, 6, -1, -1, -1).contiguous())
        out = PruneVid(segments=0.1, ratio=1.0)(tokens)
        assert out.N == 16
        assert out.sizes[0].tolist() == [6.0] * 16

    def test_deterministic_without_noise(self):
        tokens = Tokens.from_cells(torch.ones(1, 6, 5, 5, 8))
        first = PruneVid(keep=0.3)(tokens)
        assert torch.equal(first.assignment, PruneVid(keep=0.3)(tokens).assignment)


def test_tempme_keeps_class_tokens_out_of_the_matching():
    tokens = video()[0].replace(prefix=torch.randn(1, 6, 12))
    out = registry.build("tempme(0.2)")[0](tokens)
    assert torch.equal(out.prefix, tokens.prefix)


def test_testa_ranks_frames_by_the_mean_of_their_patches():
    """The mode of continuous similarities is their smallest, so one changed patch would decide."""
    still = torch.randn(1, 1, 4, 4, 16).expand(-1, 4, -1, -1, -1).clone()
    still[:, 1, 0, 0] = -still[:, 0, 0, 0]  # one patch of frame 1 turns around
    still[:, 2:] += 0.8 * torch.randn(1, 2, 4, 4, 16, generator=torch.Generator().manual_seed(1))
    out = registry.build("testa(48, time=1.0)")[0](Tokens.from_cells(still))
    assert out.sizes[0, :16].tolist() == [2.0] * 16  # frames 0 and 1 are one


class TestSpectral:
    def test_rows_span_the_lowest_eigenvectors(self):
        x = torch.randn(1, 30, 6, generator=torch.Generator().manual_seed(0))
        real = torch.ones(1, 30, dtype=torch.bool)
        ours = spectral_rows(x, real, torch.tensor([4]), 5, 1.5)[0].double().numpy()
        d = torch.cdist(x[0].double(), x[0].double()).numpy()
        near = np.zeros((30, 30), dtype=bool)
        for i in range(30):
            near[i, np.argsort(d[i])[:5]] = True  # itself first, as in the published code
        weight = np.where(near | near.T, np.exp(-(d**2) / (2 * 1.5**2)), 0.0)
        degree = weight.sum(1)
        laplacian = np.eye(30) - weight / np.sqrt(degree[:, None] * degree[None])
        expected = np.linalg.eigh(laplacian)[1][:, :4]
        # Eigenvectors are known up to a rotation; the projection is not.
        np.testing.assert_allclose(ours @ ours.T, expected @ expected.T, atol=1e-4)

    def test_finds_rings(self):
        """Two circles around each other: the spectral variant tells them apart, medoids cannot."""
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
