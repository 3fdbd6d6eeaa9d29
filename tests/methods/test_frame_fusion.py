"""FrameFusion against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fewtokens
from fewtokens.core import registry
from fewtokens.core.tokens import Tokens
from fewtokens.methods.merging.frame_fusion import FrameFusion
from tests.helpers import naive
from tests.helpers.clips import clip
from tests.helpers.naive import cosine


@pytest.mark.parametrize("similarity", [-1.0, 0.3, 0.6, 0.99])
def test_frame_fusion_against_loops(similarity):
    tokens = clip(7, 3, 4, 8, 1)
    x = tokens.features[0].double().numpy().reshape(7, 12, 8)
    chains = []
    for position in range(12):
        for t in range(7):
            if t and cosine(x[t, position], x[t - 1, position]) >= similarity:
                chains[-1].append((t, position))
            else:
                chains.append([(t, position)])
    out = FrameFusion(similarity)(tokens)
    features = {
        frozenset(np.flatnonzero(out.assignment[0].numpy() == m).tolist()): out.features[0, m].double().numpy()
        for m in range(int(out.count[0]))
    }
    assert len(features) == len(chains)
    for chain in chains:
        np.testing.assert_allclose(
            features[frozenset(t * 12 + p for t, p in chain)], np.mean([x[c] for c in chain], 0), rtol=1e-5, atol=1e-6
        )


def test_frame_fusion_at_a_budget():
    tokens = clip(7, 3, 4, 8, 2)
    assert FrameFusion(keep=30)(tokens).count.tolist() == [30, 30]
    assert FrameFusion(keep=3)(tokens).count.tolist() == [12, 12]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("value", [0.3, 0.8])
def test_thresholds_against_loops(value, seed):
    """In the form timed by the speed benchmark."""
    tokens, x = naive.video(T=7, seed=seed)
    naive.assert_same_tokens(registry.build(f"frame_fusion({value})")[0](tokens), naive.frame_fusion(x, value))


@pytest.mark.parametrize("seed", range(4))
def test_tokens_of_another_method(seed):
    """After merging, tokens may precede each other in circles; after dropping, more than the budget begin a chain."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 1, 1, 1, 32, generator=generator) + 0.5 * torch.randn(1, 6, 4, 4, 32, generator=generator)
    tokens = Tokens.from_cells(x)
    merged = fewtokens.create_method("tome", keep=0.4)(tokens)
    assert fewtokens.create_method("frame_fusion")(merged).check().N <= merged.N
    dropped = fewtokens.create_method("evs", keep=0.5)(tokens)
    assert fewtokens.create_method("frame_fusion", keep=16)(dropped).check().count.tolist() == [16]
