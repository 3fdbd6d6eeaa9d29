"""A trained network as an encoder: the same tokens, plotted over the video."""

from __future__ import annotations

import pytest
import torch

from fewtokens import networks as models
from fewtokens.core.pipeline import Pipeline
from fewtokens.encoders import load_encoder
from fewtokens.networks.vit import VisionConfig, VisionTransformer
from fewtokens.show import write_overlay
from tests.networks.test_vit import CLIP, SMALL, awake


def saved(folder, **changes) -> VisionTransformer:
    torch.manual_seed(0)
    model = awake(VisionTransformer(VisionConfig(**changes))).eval()
    model.save_pretrained(folder)
    return model


def test_frame_by_frame(tmp_path):
    model = saved(tmp_path, **SMALL, learner="tokenlearner('3/frame')", at=1)
    encoder = load_encoder(tmp_path, batch=2)
    frames = torch.rand(2, 5, 3, 16, 24)
    tokens, cues = encoder(frames, torch.arange(5) / 5)
    tokens.check()
    assert cues == {}
    assert tokens.features.shape == (2, 15, 16)
    assert tokens.grid.shape == (5, 4, 6)
    for t in range(5):
        alone = model.tokens(frames[1:, t])
        torch.testing.assert_close(tokens.features[1, 3 * t : 3 * t + 3], alone.features[0])
        torch.testing.assert_close(
            tokens.cell_weights()[1, 3 * t : 3 * t + 3].reshape(3, 5, 24)[:, t], alone.attribution[0]
        )
    assert tokens.sizes.sum(1).tolist() == pytest.approx([120, 120])


def test_clips(tmp_path):
    model = saved(tmp_path, **CLIP, learner="tokenlearner('3/frame')", at=1)
    frames = torch.rand(1, 8, 3, 16, 24)
    tokens, _ = load_encoder(tmp_path)(frames)
    torch.testing.assert_close(tokens.features, model.tokens(frames).features)
    # Other lengths and sizes are resized to multiples of the tubelet.
    assert load_encoder(tmp_path)(torch.rand(1, 5, 3, 19, 33))[0].check().grid.shape == (3, 5, 8)


def test_in_a_pipeline_and_plotted(tmp_path):
    saved(tmp_path / "m", **SMALL, learner="tokenlearner('3/frame')", at=1)
    pipeline = Pipeline("kmeans(keep=4)", load_encoder(tmp_path / "m"))
    frames = torch.randint(256, (4, 3, 32, 48)).byte()
    assert pipeline(frames).features.shape == (1, 4, 16)
    plain = Pipeline("", load_encoder(tmp_path / "m"))(frames)
    assert write_overlay(tmp_path / "maps.png", frames, plain, style="maps").stat().st_size > 1000
    with pytest.raises(ValueError, match="maps require"):
        write_overlay(tmp_path / "maps.mp4", frames, plain, style="maps")
    hard = plain.replace(attribution=None)
    with pytest.raises(ValueError, match="no attribution weights"):
        write_overlay(tmp_path / "maps.png", frames, hard, style="maps")


def test_networks_without_a_grid(tmp_path):
    saved(tmp_path, **CLIP, attention="factorized_encoder", temporal_depth=1)
    with pytest.raises(ValueError, match="not a grid of tokens"):
        load_encoder(tmp_path)
    assert models.is_saved(tmp_path)
