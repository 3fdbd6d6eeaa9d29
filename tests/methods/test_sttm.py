"""STTM: the quadtree and the merged nodes against loops and the published code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewtokens.core.batch import collate
from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.merging.sttm import Sttm
from fewtokens.methods.ops.quadtree import Layout, Quadtree, published_levels
from tests.helpers.clips import clip
from tests.helpers.published import run_spec, sum_and_square_sum, waves
from tests.helpers.squares import sttm_by_loops


def smooth(T: int, H: int, W: int, seed: int) -> Tokens:
    """Regions that are similar in space, some of which stay the same over time."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(T, 6, -(-H // 3), -(-W // 3), generator=generator)
    for t in range(1, T):
        keep = torch.rand(coarse.shape[2:], generator=generator) < 0.6
        coarse[t] = torch.where(keep, coarse[t - 1], coarse[t])
    x = coarse.repeat_interleave(3, 2).repeat_interleave(3, 3)[..., :H, :W].permute(0, 2, 3, 1)
    return Tokens.from_cells((x + 0.1 * torch.randn(x.shape, generator=generator))[None])


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 6, 5), (2, 4, 7), (4, 1, 1), (1, 4, 4), (2, 7, 7)])
@pytest.mark.parametrize("taus", [(0.9, 0.9), (0.7, 0.95), (0.5, 0.5), (0.99, 0.2)])
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize(("strips", "weighted"), [("first", False), ("first", True), ("last", False), ("last", True)])
def test_against_loops(shape, taus, levels, strips, weighted):
    tokens = smooth(*shape, seed=sum(shape))
    expected = sttm_by_loops(tokens.features[0].double().numpy().reshape(*shape, 6), *taus, levels, strips, weighted)
    out = Sttm(taus[0], tau_time=taus[1], levels=levels, strips=strips, weighted=weighted)(tokens)
    assert int(out.count[0]) == len(expected)
    assignment = out.assignment[0].numpy()
    features = {
        frozenset(np.flatnonzero(assignment == m).tolist()): out.features[0, m].double().numpy() for m in range(out.N)
    }
    for feature, cells in expected:
        np.testing.assert_allclose(features[frozenset(cells)], feature, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("side", "levels"), [(2, 0), (4, 0), (8, 1), (13, 2), (14, 2), (24, 3), (27, 3)])
def test_levels_of_the_published_runs(side, levels):
    """Root level 1 of sides halved, rounded up, down to two: 14, 7, 4, (2); 24, 12, 6, 3, (2)."""
    assert published_levels(Grid(2, side, side)) == levels


def test_a_static_uniform_clip_becomes_one_token():
    out = Sttm(0.9, levels=3)(Tokens.from_cells(torch.ones(1, 5, 8, 8, 6)))
    assert out.count.tolist() == [1]
    assert out.sizes.tolist() == [[320.0]]


def test_mirrored_frames_on_a_dyadic_grid():
    tokens = smooth(3, 8, 8, 0)
    mirrored = Tokens.from_cells(tokens.features.reshape(1, 3, 8, 8, 6).flip(3))
    method = Sttm(0.8, tau_time=1.01, levels=3)
    torch.testing.assert_close(method(tokens).unmerge().flip(3), method(mirrored).unmerge())


def test_equal_weights_and_weights_by_size():
    tokens = smooth(4, 8, 8, 1)
    equal, weighted = Sttm(0.7, levels=3)(tokens), Sttm(0.7, levels=3, weighted=True)(tokens)
    assert torch.equal(equal.assignment, weighted.assignment)
    torch.testing.assert_close((weighted.sizes[..., None] * weighted.features).sum(1), tokens.features.sum(1))
    assert not torch.allclose(equal.features, weighted.features)


@pytest.mark.parametrize("strips", ["first", "last"])
def test_counts_without_merging(strips):
    """In a padded batch, at all thresholds of the search."""
    tokens = collate([smooth(5, 7, 6, 0), smooth(2, 7, 6, 1)])
    tree = Quadtree.measure(tokens, Layout(tokens.grid, 2, weighted=False, strips=strips))
    for tau in (-1.0, 0.0, 0.4, 0.7, 0.9, 0.97, 1.01):
        expected = Sttm(tau, tau_time=tau, levels=2, strips=strips)(tokens).count
        assert torch.equal(tree.count(torch.full((2,), tau), torch.full((2,), tau)), expected)


def test_budgets():
    out = Sttm(keep=20)(clip(4, 6, 6, 12, 2))
    assert out.count.tolist() == [20, 20]


@pytest.mark.parametrize(
    ("shape", "taus", "sizes", "total"),
    [
        ((3, 7, 7), (0.5, 0.95), {1: 41, 2: 29, 4: 6, 8: 3}, [39.4222, 309.3322]),
        ((3, 7, 6), (0.6, 0.9), {1: 40, 2: 35, 4: 4}, [33.8528, 321.7425]),
        ((2, 14, 14), (0.6, 0.9), {1: 12, 4: 81, 8: 1, 16: 3}, [26.7116, 361.3962]),
    ],
)
def test_sttm(shape, taus, sizes, total):
    """HYUNJS/STTM at 00736c7, root level 1; sides that are odd at the first and second level."""
    out = run_spec(f"sttm({taus[0]}, tau_time={taus[1]})", waves(*shape))
    values, counts = out.sizes[0].unique(return_counts=True)
    assert dict(zip(values.long().tolist(), counts.tolist(), strict=True)) == sizes
    assert sum_and_square_sum(out) == pytest.approx(total, abs=2e-3)


class TestBudgetOfAVideo:
    def test_is_the_result_at_one_threshold_but_for_a_few_pairs(self):
        torch.manual_seed(3)
        features = torch.nn.functional.interpolate(torch.randn(1, 64, 8, 4, 4), (24, 16, 16), mode="trilinear")
        tokens = Tokens.from_cells(features.movedim(1, -1))
        kept = Sttm(keep=0.2)(tokens)
        low, high = -1.0, 1.01
        for _ in range(16):
            tau = (low + high) / 2
            low, high = (low, tau) if Sttm(tau, tau_time=tau)(tokens).N >= kept.N else (tau, high)
        by_tau = Sttm(high, tau_time=high)(tokens)
        # A node that is no longer split takes three tokens at a time.
        spare = by_tau.N - kept.N
        assert 0 <= spare <= 3
        same = (
            torch.cdist(kept.features[0], by_tau.features[0], compute_mode="donot_use_mm_for_euclid_dist").amin(1)
            < 1e-4
        ).sum()
        assert same >= kept.N - spare
