"""VidCom2 against loops and the published code."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core import registry
from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.pruning.vidcom2 import VidCom2
from tests.helpers import naive
from tests.helpers.clips import clip
from tests.helpers.published import kept_cells, run_spec, waves


class TestVidCom2:
    @pytest.mark.parametrize("keep", [1, 5, 12, 30, 77, 120])
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_against_loops(self, keep, seed):
        tokens = clip(4, 5, 6, 16, 1, seed=seed)
        out = VidCom2(keep)(tokens)
        naive.assert_same_tokens(out, naive.vidcom2(tokens.features[0].double().numpy().reshape(4, 5, 6, 16), keep))

    def test_a_distinctive_frame_keeps_more(self):
        generator = torch.Generator().manual_seed(0)
        x = 1 + 0.3 * torch.randn(1, 1, 4, 4, 16, generator=generator).repeat(1, 6, 1, 1, 1)
        x[:, 3] = torch.randn(1, 4, 4, 16, generator=generator)
        out = VidCom2(0.25)(Tokens.from_cells(x))
        per_frame = torch.bincount(out.frame[0], minlength=6)
        assert int(per_frame[3]) > int(per_frame[0])
        assert int(per_frame.sum()) == 24

    def test_counts(self):
        grid = Grid(32, 14, 14)
        assert VidCom2(0.25).planned_count(grid) == int(32 * 196 * 0.25)
        assert VidCom2(0.001).planned_count(grid) == 32


def test_vllm_reference():
    """vllm-project/vllm, vllm/multimodal/video_prune/vidcom2.py at 0f17ee0."""
    expected = [1, 3, 20, 21, 22, 24, 25, 29, 45, 46, 47, 48, 56, 58, 70]
    expected += [71, 72, 78, 95, 96, 97, 103, 120, 121, 122, 125, 127, 131, 146]
    assert kept_cells(run_spec("vidcom2(q=0.8)", waves(6, 5, 5))) == expected


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("keep", [0.6, 0.25])
def test_budgets_against_loops(keep, seed):
    """In the form timed by the speed benchmark."""
    tokens, x = naive.video(seed=seed)
    (method,) = registry.build(f"vidcom2({keep})")
    naive.assert_same_tokens(method(tokens), naive.vidcom2(x, method.planned_count(tokens.grid)))
