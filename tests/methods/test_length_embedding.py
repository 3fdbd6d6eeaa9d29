"""The embedding of run lengths."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core.pipeline import Pipeline
from fewtokens.methods.learned.length_embedding import LengthEmbedding
from fewtokens.methods.pruning.rlt import Rlt
from tests.helpers.pixels import pixel_clip


def test_rlt_adds_the_embedding_of_a_runs_length():
    torch.manual_seed(0)
    tokens, pixels = pixel_clip()
    method = LengthEmbedding(3, dim=8).eval()
    runs = Rlt(0.1)(tokens, pixels=pixels)
    out = Pipeline([Rlt(0.1), method])(tokens, pixels=pixels)
    row = runs.sizes[0].long().clamp(max=3) - 1
    torch.testing.assert_close(out.features[0], runs.features[0] + method.lengths[row])
    out.features.sum().backward()
    assert bool((method.lengths.grad != 0).any())
    with pytest.raises(ValueError, match=r"length_embedding.* cannot be streamed"):
        Pipeline([Rlt(0.1), method]).step(tokens, None, pixels=pixels)
