"""Connected components against scipy; Scissor against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewtokens.core.tokens import Tokens
from fewtokens.methods.merging.scissor import Scissor
from fewtokens.methods.ops import components as room
from fewtokens.methods.ops.components import by_cosine
from tests.helpers.clips import clip

csgraph = pytest.importorskip("scipy.sparse.csgraph")


def exact(x: np.ndarray, tau: float) -> np.ndarray:
    """The smallest member of each row's component."""
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    _, label = csgraph.connected_components(unit @ unit.T > tau, directed=False)
    return np.array([np.flatnonzero(label == part)[0] for part in label])


@pytest.mark.parametrize("tau", [-1.0, 0.3, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("block", [1, 1 << 22])
def test_components_against_scipy(tau, block, monkeypatch):
    monkeypatch.setattr(room, "_ENTRIES_AT_ONCE", block)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 40, 4, generator=generator)
    mask = torch.ones(3, 40, dtype=torch.bool)
    mask[1, 25:] = False
    label = by_cosine(x, mask, torch.full((3,), tau))
    for b, n in enumerate((40, 25, 40)):
        assert label[b, :n].tolist() == exact(x[b, :n].double().numpy(), tau).tolist()


def test_a_long_chain():
    """Each is like the next one alone: the worst case for labels that run."""
    angle = torch.arange(300) * 0.01
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    x = torch.stack([angle.cos(), angle.sin()], 1)[order][None]
    label = by_cosine(x, torch.ones(1, 300, dtype=torch.bool), torch.tensor([float(np.cos(0.011))]))
    assert bool((label == 0).all())


@pytest.mark.parametrize("tau", [0.2, 0.6, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_scissor_against_loops(tau, seed):
    tokens = clip(4, 3, 4, 8, 1, seed=seed)
    x = tokens.features[0].double().numpy().reshape(4, 12, 8)
    survivors = []
    for t in range(4):
        label = exact(x[t], tau)
        survivors += [x[t][label == part].mean(0) for part in np.unique(label)]
    survivors = np.stack(survivors)
    # Plain means again, whatever a survivor stands for.
    label = exact(survivors, tau)
    reps = np.stack([survivors[label == p].mean(0) for p in np.unique(label)])
    unit = reps / np.linalg.norm(reps, axis=1, keepdims=True)
    flat = x.reshape(-1, 8)
    nearest = (flat / np.linalg.norm(flat, axis=1, keepdims=True) @ unit.T).argmax(1)
    expected = [
        (reps[r] + flat[nearest == r].sum(0)) / ((nearest == r).sum() + 1)
        for r in range(len(reps))
        if (nearest == r).any()
    ]
    out = Scissor(tau)(tokens)
    assert int(out.count[0]) == len(expected)
    found = out.features[0].double().numpy()
    assert all(np.abs(found - row).max(1).min() < 1e-4 for row in expected)


def test_a_static_clip_leaves_no_more_than_one_frame():
    x = torch.randn(1, 1, 4, 4, 16).repeat(1, 6, 1, 1, 1)
    assert int(Scissor(0.99)(Tokens.from_cells(x)).count[0]) <= 16


def test_budget_of_each_video_for_itself():
    out = Scissor(keep=9)(clip(3, 4, 4, 8, 3))
    assert out.count.tolist() == [9, 9, 9]
