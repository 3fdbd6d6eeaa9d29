"""Methods between the blocks of a ViT, on frames."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core.pipeline import Pipeline
from fewtokens.encoders import VitEncoder
from tests.helpers.vits import small_vit


@pytest.mark.parametrize(
    "spec",
    [
        "vid_tldr(0.2)",
        "vid_tldr(0.2, by='shift')",
        "representation_shift_in_encoder(0.2)",
        "merge_windows_in_encoder(0.25, window=3)",
        "grt(keep=0.4) | representation_shift_in_encoder(0.2)",
        "visual_words(0.5) | vid_tldr(0.1)",
    ],
)
def test_on_frames(spec):
    vit = small_vit()
    frames = torch.rand(2, 5, 3, 24, 24, generator=torch.Generator().manual_seed(2))
    frames[:, 1:, :, :12] = frames[:, :1, :, :12]
    pipeline = Pipeline(spec, VitEncoder(vit))
    out = pipeline(frames).check()
    assert bool(out.features.isfinite().all())
    assert out.N < 180
    alone = pipeline(frames[1:])
    torch.testing.assert_close(out[1].features, alone.features, rtol=1e-4, atol=1e-4)
    if "|" not in spec:
        assert out.count.tolist() == [pipeline.planned_count(out.grid)] * 2
    by_two = Pipeline(spec, VitEncoder(vit, batch=2))(frames)
    torch.testing.assert_close(out.features, by_two.features, rtol=1e-4, atol=1e-4)
