"""Laws of methods that compare frames by cosine similarity."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core import registry
from fewtokens.core.tokens import Tokens
from tests.helpers.clips import clip


@pytest.mark.parametrize("spec", ["evs(0.4)", "dtd(0.5)", "dtd(0.4, mode='relative')"])
class TestCosineMethods:
    def test_scaling_the_features_changes_nothing(self, spec):
        tokens, (method,) = clip(), registry.build(spec)
        scaled = tokens.replace(features=tokens.features * 37.5)
        assert torch.equal(method(tokens).assignment, method(scaled).assignment)

    def test_mirrored_video(self, spec):
        tokens, (method,) = clip(), registry.build(spec)
        grid = tokens.features.reshape(2, *tokens.grid.shape, -1)
        mirrored = Tokens.from_cells(grid.flip(3))
        kept = (method(tokens).assignment >= 0).reshape(2, *tokens.grid.shape)
        assert torch.equal((method(mirrored).assignment >= 0).reshape(kept.shape), kept.flip(3))

    def test_static_and_novel_clips(self, spec):
        (method,) = registry.build(spec)
        static = Tokens.from_cells(torch.randn(1, 1, 3, 4, 64).expand(1, 6, 3, 4, 64))
        novel = Tokens.from_cells(torch.randn(1, 6, 3, 4, 512, generator=torch.Generator().manual_seed(1)))
        assert bool((method(static).assignment[0, :12] >= 0).all())
        if spec == "dtd(0.5)":
            assert method(static).N == 12
            assert method(novel).N == 72
