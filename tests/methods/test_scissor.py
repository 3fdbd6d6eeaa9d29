"""Scissor against loops and the published code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fewtokens
from fewtokens.core.batch import collate
from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.merging.scissor import Scissor, _Passes
from fewtokens.methods.ops.search import find_threshold
from tests.helpers.clips import clip
from tests.helpers.components import connected_components
from tests.helpers.published import run_spec, sum_and_square_sum, waves


@pytest.mark.parametrize("tau", [0.2, 0.6, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_scissor_against_loops(tau, seed):
    tokens = clip(4, 3, 4, 8, 1, seed=seed)
    x = tokens.features[0].double().numpy().reshape(4, 12, 8)
    survivors = []
    for t in range(4):
        label = connected_components(x[t], tau)
        survivors += [x[t][label == part].mean(0) for part in np.unique(label)]
    survivors = np.stack(survivors)
    # Plain means again, regardless of the number of tokens a survivor stands for.
    label = connected_components(survivors, tau)
    representatives = np.stack([survivors[label == p].mean(0) for p in np.unique(label)])
    unit = representatives / np.linalg.norm(representatives, axis=1, keepdims=True)
    flat = x.reshape(-1, 8)
    nearest = (flat / np.linalg.norm(flat, axis=1, keepdims=True) @ unit.T).argmax(1)
    expected = [
        (representatives[r] + flat[nearest == r].sum(0)) / ((nearest == r).sum() + 1)
        for r in range(len(representatives))
        if (nearest == r).any()
    ]
    out = Scissor(tau)(tokens)
    assert int(out.count[0]) == len(expected)
    features = out.features[0].double().numpy()
    assert all(np.abs(features - row).max(1).min() < 1e-4 for row in expected)


def test_a_static_clip_leaves_no_more_than_one_frame():
    x = torch.randn(1, 1, 4, 4, 16).repeat(1, 6, 1, 1, 1)
    assert int(Scissor(0.99)(Tokens.from_cells(x)).count[0]) <= 16


@pytest.mark.parametrize("seed", range(3))
def test_the_search_knows_the_count_without_the_assignment(seed):
    """In a padded batch; some representatives have no tokens at low thresholds."""
    tokens = collate([clip(4, 3, 4, 4, 1, seed=seed), clip(7, 3, 4, 4, 1, seed=seed + 9)])
    passes = _Passes(tokens)
    for tau in (-0.8, -0.2, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0):
        count = Scissor(tau)(tokens).count
        for change in (-1, 0, 1):
            target = (count + change).clamp(min=1)
            found = passes.count(torch.full((2,), tau), torch.full((2,), -1.0), target)
            assert torch.equal(found >= target, count >= target)
            assert bool(((found >= count) | (count < target)).all())


@pytest.mark.parametrize("keep", [5, 14, 30])
def test_the_search_finds_the_threshold_that_leaves_the_fewest_tokens(keep):
    """In a padded batch: pairs that were compared at one threshold are not compared again at the next."""
    tokens = collate([clip(6, 3, 4, 4, 1, seed=keep), clip(3, 3, 4, 4, 1, seed=keep + 1)])
    target, passes = torch.full((2,), keep), _Passes(tokens)

    def count(step: int, video: int) -> int:
        return int(Scissor(step / 128 - 1)(tokens).count[video])

    tau = find_threshold(lambda *taus: passes.count(*taus, target), target, tokens.count, -1.0, 1.0)
    for video, step in enumerate(((tau + 1) * 128).round().int().tolist()):
        assert count(step, video) >= keep
        assert count(step, video) == keep or count(step - 1, video) < keep
    assert passes.compared is not None


def test_budget_is_per_video():
    out = Scissor(keep=9)(clip(3, 4, 4, 8, 3))
    assert out.count.tolist() == [9, 9, 9]


def test_scissor():
    """HumanMLLM/LLaVA-Scissor at b63354c."""
    out = run_spec("scissor(0.5)", waves(6, 5, 5))
    assert int(out.count[0]) == 8
    assert sum_and_square_sum(out) == pytest.approx([5.9504, 28.7818], abs=1e-3)


def test_the_gradient_includes_the_representative():
    """The output is a mean, also of the representative: the gradients of a sum add up to one per token left."""
    x = (torch.randn(1, 8, 1, dtype=torch.float64) * 0.01 + 1).expand(-1, -1, 4).clone().requires_grad_(True)
    out = fewtokens.create_method("scissor", tau=0.5)(Tokens.from_cells(x, Grid(2, 2, 2)))
    assert out.N == 1 and out.features.dtype == torch.float64
    out.features[..., 0].sum().backward()
    torch.testing.assert_close(float(x.grad.sum()), 1.0)
