"""Other vision encoders of transformers, as they are."""

from __future__ import annotations

import json

import pytest
import torch

from fewtokens.encode import load_encoder
from fewtokens.pipeline import Pipeline

transformers = pytest.importorskip("transformers")


def models():
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    square = {"image_size": 32, "patch_size": 8}
    yield "Deit", transformers.DeiTModel(transformers.DeiTConfig(**small, **square)), (4, 16, 2)
    yield "Beit", transformers.BeitModel(transformers.BeitConfig(**small, **square)), (4, 16, 1)
    swin = transformers.Swinv2Config(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4
    )
    yield "Swinv2", transformers.Swinv2Model(swin), (4, 16, 0)
    convnext = transformers.ConvNextV2Config(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=32)
    yield "ConvNextV2", transformers.ConvNextV2Model(convnext), (4, 16, 0)


@pytest.mark.parametrize(
    ("name", "model", "expected"), list(models()), ids=lambda value: value if isinstance(value, str) else ""
)
@torch.no_grad()
def test_frames_to_tokens(name, model, expected, tmp_path):
    side, width, prefix = expected
    model.eval().save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path, batch=2)
    video = torch.rand(2, 3, 3, 32, 32)
    tokens, cues = encoder(video, needs=("pixels", "frame_global"))
    assert tokens.grid.shape == (3, side, side)
    assert width == tokens.C
    assert tokens.num_prefix == 3 * prefix
    assert cues["pixels"].shape == (2, 3 * side * side, 1, 3 * 64)
    assert cues["frame_global"].shape == (2, 3, width)
    mean, std = (torch.tensor(value)[:, None, None] for value in (encoder.mean, encoder.std))
    hidden = model(pixel_values=(video[1, 2:] - mean) / std).last_hidden_state[0]
    hidden = hidden.flatten(1).T if hidden.ndim == 3 else hidden[prefix:]
    torch.testing.assert_close(tokens.features[1, -side * side :], hidden, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_pixels_methods_come_after(tmp_path):
    _, model, _ = next(models())
    model.eval().save_pretrained(tmp_path)
    tokens = Pipeline("rlt | tome(5)", load_encoder(tmp_path))(torch.zeros(1, 4, 3, 40, 50, dtype=torch.uint8))
    assert tokens.N == 5
    assert tokens.sizes.sum() == 64
    with pytest.raises(ValueError, match="does not allow"):
        Pipeline("tome(r=1, stage='encoder')", load_encoder(tmp_path))


def test_what_is_no_frame_encoder(tmp_path):
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is no encoder of single frames"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    with pytest.raises(ValueError, match="cannot load it"):
        load_encoder(tmp_path)
