"""DyCoke against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewtokens.core import registry
from fewtokens.core.grid import Grid
from fewtokens.methods.pruning.dycoke import DyCoke
from tests.helpers import naive
from tests.helpers.clips import clip
from tests.helpers.naive import cosine


class TestDyCoke:
    def test_the_count_of_the_paper(self):
        """With T=32, n=196 and k=0.7, 3098 tokens (49.4 %) are kept."""
        assert DyCoke(0.7).planned_count(Grid(32, 14, 14)) == 3098
        assert DyCoke(0.7, last_group="pruned").planned_count(Grid(32, 14, 14)) == 3098 - 196 + 58

    @pytest.mark.parametrize("T", [1, 2, 3, 4, 5, 7, 8, 11])
    @pytest.mark.parametrize("last_group", ["whole", "pruned"])
    def test_against_loops(self, T, last_group):
        tokens = clip(T, 3, 4, 8, 1)
        x = tokens.features[0].double().numpy().reshape(T, 12, 8)
        survives = np.ones((T, 12), bool)

        def prune(t: int, earlier: int) -> None:
            order = sorted(range(12), key=lambda n: cosine(x[t, n], x[earlier, n]))
            survives[t] = [n in order[:3] for n in range(12)]

        for i in range(0, T - 1, 2):
            prune(i + 1, i)
        for i in range(0, T, 4):
            if i + 2 < T and (last_group == "pruned" or i < T - 4):
                prune(i + 2, i)
        out = DyCoke(0.7, last_group=last_group)(tokens)
        assert torch.equal(out.assignment[0] >= 0, torch.from_numpy(survives.reshape(-1)))

    def test_no_frame_is_lost(self):
        out = DyCoke(1.0)(clip(7, 3, 4, 8, 1))
        assert set(out.frame[0].tolist()) == {0, 4, 6}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("value", [0.3, 0.8])
def test_thresholds_against_loops(value, seed):
    """In the form timed by the speed benchmark."""
    tokens, x = naive.video(T=7, seed=seed)
    naive.assert_same_tokens(registry.build(f"dycoke({value})")[0](tokens), naive.dycoke(x, value))
