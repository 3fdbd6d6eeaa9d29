"""Connected components against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fewtokens.methods.ops import components as module
from fewtokens.methods.ops.components import (
    components,
    cosine_components,
    count_components,
    lowest_over,
    spanning_edges,
)
from tests.helpers.components import connected_components


@pytest.mark.parametrize("tau", [-1.0, 0.3, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("block", [1, 1 << 22])
def test_components_against_scipy(tau, block, monkeypatch):
    monkeypatch.setattr(module, "_MAX_BLOCK_ENTRIES", block)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 40, 4, generator=generator)
    mask = torch.ones(3, 40, dtype=torch.bool)
    mask[1, 25:] = False
    label, *_ = cosine_components(x, mask, torch.full((3,), tau))
    for b, n in enumerate((40, 25, 40)):
        assert label[b, :n].tolist() == connected_components(x[b, :n].double().numpy(), tau).tolist()


def test_a_long_chain():
    """Each token is similar only to the next: the worst case for label propagation."""
    angle = torch.arange(300) * 0.01
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    x = torch.stack([angle.cos(), angle.sin()], 1)[order][None]
    label, *_ = cosine_components(x, torch.ones(1, 300, dtype=torch.bool), torch.tensor([float(np.cos(0.011))]))
    assert bool((label == 0).all())


@pytest.mark.parametrize("levels", [None, 3])
@pytest.mark.parametrize("block", [500, 1 << 20])
def test_a_spanning_tree_has_the_components_of_all_pairs_at_every_threshold(levels, block, monkeypatch):
    """Also with equal similarities, and in padded batches."""
    monkeypatch.setattr(module, "_MAX_BLOCK_ENTRIES", block)
    x = torch.randn(3, 40, 4, generator=torch.Generator().manual_seed(1))
    x = x if levels is None else (x * levels).round()
    mask = torch.ones(3, 40, dtype=torch.bool)
    mask[1, 25:] = False
    ends, cosines = spanning_edges(F.normalize(x, dim=2), mask)
    own = torch.arange(40).expand(ends.shape)
    for tau in (-1.0, -0.3, 0.2, 0.5, 0.8, 0.95, 1.0):
        edges = (cosines > tau).flatten(1)
        label = components(lowest_over(own.flatten(1), ends.flatten(1), edges), mask)
        assert torch.equal(label[mask], cosine_components(x, mask, torch.full((3,), tau))[0][mask])


@pytest.mark.parametrize("block", [50, 1 << 20])
def test_the_search_for_edges_stops_below_the_least_count(block, monkeypatch):
    monkeypatch.setattr(module, "_MAX_BLOCK_ENTRIES", block)
    x = torch.randn(2, 60, 4, generator=torch.Generator().manual_seed(2))
    mask, tau = torch.ones(2, 60, dtype=torch.bool), torch.full((2,), 0.8)
    expected, *_ = cosine_components(x, mask, tau)
    count = count_components(expected, mask)
    assert torch.equal(cosine_components(x, mask, tau, least=count)[0], expected)
    stopped = count_components(cosine_components(x, mask, tau, least=count + 10)[0], mask)
    assert bool(((stopped >= count) & (stopped < count + 10)).all())


@pytest.mark.parametrize("block", [50, 1 << 20])
def test_edges_between_known_tokens_are_not_looked_for_again(block, monkeypatch):
    monkeypatch.setattr(module, "_MAX_BLOCK_ENTRIES", block)
    x = torch.randn(2, 60, 4, generator=torch.Generator().manual_seed(3))
    mask = torch.ones(2, 60, dtype=torch.bool)
    mask[1, 50:] = False
    tau, floor = torch.tensor([0.9, 0.8]), torch.tensor([0.7, 0.75])
    _, edges, _ = cosine_components(x, mask, tau, floor)
    assert edges is not None
    fresh = torch.rand(2, 60, generator=torch.Generator().manual_seed(4)) < 0.3
    x = torch.where(fresh[..., None], -x.flip(1), x)
    known = edges.select(~fresh.flatten()[edges.a] & ~fresh.flatten()[edges.b])
    label, *_ = cosine_components(x, mask, tau, floor, known=known, fresh=fresh)
    assert torch.equal(label[mask], cosine_components(x, mask, tau)[0][mask])


def test_a_search_that_stopped_says_which_tokens_were_compared(monkeypatch):
    monkeypatch.setattr(module, "_MAX_BLOCK_ENTRIES", 200)
    x = torch.randn(2, 60, 4, generator=torch.Generator().manual_seed(5))
    mask, tau = torch.ones(2, 60, dtype=torch.bool), torch.full((2,), 0.7)
    _, edges, done = cosine_components(x, mask, tau, least=torch.full((2,), 40))
    assert edges is not None
    assert 0 < int(done.sum()) < 120
    known = edges.select(done.flatten()[edges.a] & done.flatten()[edges.b])
    label, *_ = cosine_components(x, mask, tau, known=known, fresh=~done)
    assert torch.equal(label, cosine_components(x, mask, tau)[0])


@pytest.mark.parametrize("most", [0, 2, 5, 1000])
@pytest.mark.parametrize("block", [50, 1 << 20])
def test_edges_are_all_pairs_above_their_floor(most, block, monkeypatch):
    """Which rises between the requested one and tau when they are too many; with none, it is above all cosines."""
    monkeypatch.setattr(module, "_MAX_BLOCK_ENTRIES", block)
    monkeypatch.setattr(module, "_MAX_EDGES", most)
    x = F.normalize(torch.randn(2, 40, 4, generator=torch.Generator().manual_seed(2)), dim=2)
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[1, 25:] = False
    tau, floor = torch.full((2,), 0.9), torch.full((2,), -0.5)
    _, edges, done = cosine_components(x, mask, tau, floor)
    assert bool((done | ~mask).all()) and len(edges.a) <= most * 80
    assert bool((edges.floor >= floor).all()) and (bool((edges.floor == floor).all()) == (most == 1000))
    assert most == 0 or bool((edges.floor <= tau).all())
    above = x @ x.transpose(1, 2) > edges.floor[:, None, None]
    pairs = above & mask[:, :, None] & mask[:, None] & torch.ones(40, 40, dtype=torch.bool).triu(1)
    expected = {(b * 40 + i, b * 40 + j) for b, i, j in pairs.nonzero().tolist()}
    found = {tuple(sorted(pair)) for pair in zip(edges.a.tolist(), edges.b.tolist(), strict=True) if pair[0] != pair[1]}
    assert found == expected
