"""Token counts equal those of vLLM."""

from __future__ import annotations

import pytest

from fewtokens.core import registry
from fewtokens.core.grid import Grid


class TestVllm:
    """vllm-project/vllm, vllm/multimodal/video_prune: vidcom2.py at 0f17ee0, evs.py at d750efb."""

    @pytest.mark.parametrize("name", ["evs", "vidcom2"])
    def test_counts(self, name):
        """1 - 0.8 is slightly less than 0.2 in floating point, so vLLM keeps one token less; 1 - 0.75 is exact."""
        counts = {(6, 100, 0.8): 119, (6, 50, 0.8): 59, (5, 49, 0.2): 196, (32, 196, 0.75): 1568, (64, 256, 0.9): 1638}
        for (T, n, q), count in counts.items():
            assert registry.build(f"{name}(q={q})")[0].planned_count(Grid(T, 1, n)) == count
        assert registry.build(f"{name}(keep=0.2)")[0].planned_count(Grid(6, 1, 100)) == 120

    @pytest.mark.parametrize("name", ["evs", "vidcom2"])
    def test_minimum_count(self, name):
        assert registry.build(f"{name}(q=0.99)")[0].planned_count(Grid(6, 1, 50)) == {"evs": 50, "vidcom2": 6}[name]

    @pytest.mark.parametrize("spec", ["evs(q=1.0)", "evs(q=-0.1)", "vidcom2(q='half')", "vidcom2(q=True)"])
    def test_invalid_rates(self, spec):
        with pytest.raises(ValueError, match=r"q must be a pruning rate|q must be a finite number"):
            registry.build(spec)

    @pytest.mark.parametrize("spec", ["evs(0.5, q=0.5)", "evs(q=0.5, tau=0.1)", "vidcom2(0.5, q=0.5)"])
    def test_only_one_budget(self, spec):
        with pytest.raises(ValueError, match="q="):
            registry.build(spec)
