"""EVS against a double loop and the published code."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from fewtokens.core import registry
from fewtokens.core.grid import Grid
from fewtokens.methods.pruning.evs import Evs
from tests.helpers import naive
from tests.helpers.clips import clip
from tests.helpers.published import kept_cells, run_spec, waves


class TestEvs:
    @pytest.mark.parametrize(("T", "q"), [(1, 0.0), (4, 0.5), (4, 0.99), (8, 0.75), (5, 0.3)])
    def test_against_a_double_loop(self, T, q):
        tokens = clip(T, 3, 4, B=1)
        x = tokens.features[0].reshape(T, 12, -1)
        scores = []
        for t, s in itertools.product(range(T), range(12)):
            d = 255.0 if t == 0 else 1 - float(F.cosine_similarity(x[t, s], x[t - 1, s], dim=0))
            scores.append((-d, t * 12 + s))
        k = max(12, int(T * 12 * (1 - q) + 1e-6))
        expected = sorted(cell for _, cell in sorted(scores)[:k])
        out = Evs(keep=1 - q)(tokens)
        assert out.cell[0].tolist() == expected
        assert torch.equal(out.features[0], tokens.features[0, expected])
        assert (out.assignment[0] >= 0).nonzero().flatten().tolist() == expected

    def test_never_below_one_frame(self):
        out = Evs(keep=1)(clip(6, 3, 4))
        assert out.count.tolist() == [12, 12]
        assert bool((out.positions[..., 0] == 0).all())
        assert Evs(keep=1).planned_count(Grid(6, 3, 4)) == 12

    def test_masks_shrink_with_the_budget(self):
        tokens = clip(8, 4, 4)
        masks = [Evs(keep=keep)(tokens).assignment >= 0 for keep in (0.9, 0.6, 0.4, 0.2)]
        for more, less in itertools.pairwise(masks):
            assert bool((more | ~less).all())


def test_vllm_reference():
    """vllm-project/vllm, vllm/multimodal/video_prune/evs.py at d750efb."""
    expected = [*range(25), 126, 130, 131, 132]
    assert kept_cells(run_spec("evs(q=0.8)", waves(6, 5, 5))) == expected


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("keep", [0.6, 0.25])
def test_budgets_against_loops(keep, seed):
    """In the form timed by the speed benchmark."""
    tokens, x = naive.video(seed=seed)
    (method,) = registry.build(f"evs({keep})")
    naive.assert_same_tokens(method(tokens), naive.evs(x, method.planned_count(tokens.grid)))
