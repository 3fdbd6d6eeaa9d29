"""DTD against double loops."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from fewtokens.core import registry
from fewtokens.core.tokens import Tokens
from fewtokens.methods.pruning.dtd import Dtd
from tests.helpers import naive
from tests.helpers.clips import clip
from tests.helpers.pixels import pixel_clip


class TestDtd:
    @pytest.mark.parametrize("tau", [-1.0, 0.25, 0.5, 0.97, 1.0])
    def test_feature_mode_against_a_double_loop(self, tau):
        tokens = clip(5, 3, 4, B=1)
        x = tokens.features[0].reshape(5, 12, -1)
        expected = [
            t * 12 + s
            for t, s in itertools.product(range(5), range(12))
            if t == 0 or not F.cosine_similarity(x[t, s], x[t - 1, s], dim=0) > tau
        ]
        assert Dtd(tau)(tokens).cell[0].tolist() == expected

    @pytest.mark.parametrize("tau", [0.0, 0.29, 0.5, 1.0])
    def test_relative_mode_drops_the_most_similar_of_each_frame(self, tau):
        tokens = clip(5, 4, 5, B=1)
        x = tokens.features[0].reshape(5, 20, -1)
        expected = list(range(20))
        for t in range(1, 5):
            similarity = [(-float(F.cosine_similarity(x[t, s], x[t - 1, s], dim=0)), s) for s in range(20)]
            dropped = {s for _, s in sorted(similarity)[: int(20 * tau)]}
            expected += [t * 20 + s for s in range(20) if s not in dropped]
        method = Dtd(tau, mode="relative")
        assert method(tokens).cell[0].tolist() == expected
        assert method.planned_count(tokens.grid) == len(expected)

    @pytest.mark.parametrize("P", [1, 2])
    def test_pixel_mode_against_a_double_loop(self, P):
        tokens, pixels = pixel_clip(P=P)
        p = pixels[0].reshape(5, 12, P, 12)
        expected = [
            t * 12 + s
            for t, s in itertools.product(range(5), range(12))
            if t == 0 or not (p[t - 1, s, 0] - p[t, s, -1]).abs().mean() < 0.1
        ]
        before = pixels.clone()
        assert Dtd(mode="pixel")(tokens, pixels=pixels).cell[0].tolist() == expected
        assert torch.equal(pixels, before)

    def test_slow_drift_is_undetected(self):
        """The previous frame is the original one, kept or not, as published."""
        angle = torch.linspace(0, torch.pi / 2, 30)
        x = torch.stack([angle.cos(), angle.sin()], 1).reshape(1, 30, 1, 1, 2)
        assert Dtd(0.9)(Tokens.from_cells(x)).N == 1

    def test_invalid_arguments(self):
        for arguments in ({"mode": "edges"}, {"tau": 2.0}, {"tau": -0.1, "mode": "pixel"}):
            with pytest.raises(ValueError, match=r"tau|mode"):
                Dtd(**arguments)


def test_after_an_earlier_reduction():
    """The previous token is found through the assignment: a run is represented by its first patch."""
    tokens, pixels = pixel_clip(T=4, P=1)
    rlt, dtd = registry.build("rlt | dtd(0.5)")
    runs = rlt(tokens, pixels=pixels)
    out = dtd(runs)
    x, expected = tokens.features[0], []
    for n, cell in enumerate(runs.cell[0].tolist()):
        before = None if cell < 12 else int(runs.assignment[0, cell - 12])
        if before is None or not F.cosine_similarity(x[cell], runs.features[0, before], dim=0) > 0.5:
            expected.append(n)
    assert torch.equal(out.features[0], runs.features[0, expected])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("value", [0.3, 0.8])
def test_thresholds_against_loops(value, seed):
    """In the form timed by the speed benchmark."""
    tokens, x = naive.video(T=7, seed=seed)
    naive.assert_same_tokens(registry.build(f"dtd({value})")[0](tokens), naive.dtd(x, value))
