"""Other vision encoders of transformers, run unchanged."""

from __future__ import annotations

import json

import pytest
import torch

from fewtokens.core.pipeline import Pipeline
from fewtokens.encoders import VitEncoder, load_encoder
from fewtokens.encoders.probe import find_cells

transformers = pytest.importorskip("transformers")


def models():
    torch.manual_seed(0)
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


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SQUARE = {"image_size": 32, "patch_size": 8}


@pytest.mark.parametrize("whole", [False, True])
@torch.no_grad()
def test_a_masked_autoencoder_encodes_every_patch(whole, tmp_path):
    """facebook/vit-mae-*: the forward of transformers masks three of four patches, different ones each time."""
    decoder = {"decoder_hidden_size": 16, "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1,
               "decoder_intermediate_size": 16}  # fmt: skip
    config = transformers.ViTMAEConfig(**SMALL, **SQUARE, **decoder)
    model = (transformers.ViTMAEForPreTraining if whole else transformers.ViTMAEModel)(config).eval()
    model.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    assert isinstance(encoder, VitEncoder)
    assert encoder.vit.proportional == "none"
    frame = torch.rand(1, 1, 3, 32, 32)
    tokens, again = encoder(frame)[0], encoder(frame)[0]
    assert tokens.grid.cells == 16
    assert torch.equal(tokens.features, again.features)
    # The same with transformers, without masking and with patches in order.
    bare = model.vit if whole else model
    bare.config.mask_ratio = 0.0
    mean, std = (torch.tensor(value)[:, None, None] for value in (encoder.mean, encoder.std))
    expected = bare(pixel_values=(frame[0] - mean) / std, noise=torch.arange(16.0)[None]).last_hidden_state
    torch.testing.assert_close(tokens.features, expected[:, 1:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tokens.prefix, expected[:, :1], rtol=1e-4, atol=1e-4)


def others():
    """Models whose output is one row per cell, with their side and prefix."""
    dino = transformers.DINOv3ViTConfig(**SMALL, **SQUARE, num_register_tokens=4)
    yield transformers.DINOv3ViTModel, dino, (4, 5)
    yield transformers.ViTMSNModel, transformers.ViTMSNConfig(**SMALL, **SQUARE), (4, 1)
    yield transformers.IJepaModel, transformers.IJepaConfig(**SMALL, **SQUARE), (4, 0)
    swin = {"image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
    yield transformers.SwinModel, transformers.SwinConfig(**swin), (8, 0)
    stages = {"depths": [1, 1], "hidden_sizes": [8, 16], "sr_ratios": [2, 1], "mlp_ratios": [2, 2]}
    segformer = {**stages, "num_encoder_blocks": 2, "patch_sizes": [7, 3], "strides": [4, 2],
                 "num_attention_heads": [1, 2]}  # fmt: skip
    yield transformers.SegformerModel, transformers.SegformerConfig(**segformer), (28, 0)


@pytest.mark.parametrize(
    ("kind", "config", "expected"), list(others()), ids=lambda value: getattr(value, "__name__", "")
)
@torch.no_grad()
def test_merged_windows_and_registers(kind, config, expected, tmp_path):
    torch.manual_seed(0)
    kind(config).save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    assert (encoder.side, encoder.num_prefix) == expected
    # Changing a quarter of the frame changes that quarter most.
    frame = torch.rand(1, 1, 3, 64, 64)
    changed = frame.clone()
    changed[..., :32, 32:] = 1 - changed[..., :32, 32:]
    moved = (encoder(changed)[0].features - encoder(frame)[0].features).norm(dim=2).reshape(expected[0], expected[0])
    half = expected[0] // 2
    quarters = [moved[:half, :half], moved[:half, half:], moved[half:, :half], moved[half:, half:]]
    assert max(range(4), key=lambda number: float(quarters[number].mean())) == 1


def refused():
    yield transformers.VideoMAEModel, transformers.VideoMAEConfig(**SMALL, **SQUARE, num_frames=2)
    yield (
        transformers.VivitModel,
        transformers.VivitConfig(**SMALL, image_size=32, num_frames=2, tubelet_size=[2, 8, 8]),
    )
    yield transformers.CLIPTextModel, transformers.CLIPTextConfig(**SMALL, vocab_size=20)
    yield transformers.Siglip2VisionModel, transformers.Siglip2VisionConfig(**SMALL, num_patches=16, patch_size=8)


@pytest.mark.parametrize(("kind", "config"), list(refused()), ids=lambda value: getattr(value, "__name__", ""))
def test_encoders_of_clips_text_and_packed_patches_are_refused(kind, config, tmp_path):
    kind(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not an encoder of single frames") as caught:
        load_encoder(tmp_path)
    assert "\n" not in str(caught.value)


class TestProbe:
    """Synthetic encoders whose rows are patches of 8 pixels, with the expected error."""

    PERMUTED = torch.randperm(16, generator=torch.Generator().manual_seed(3))

    def rows(self, frames: torch.Tensor) -> torch.Tensor:
        patches = frames.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        return patches + 0.1 * patches.mean(1, keepdim=True)

    def test_finds_cells(self):
        token = torch.ones(1, 1, 192)
        assert find_cells(self.rows, 32) == (0, 4)
        assert find_cells(lambda x: torch.cat([token, token, self.rows(x)], 1), 32) == (2, 4)
        # 25 rows may be 5 x 5 cells, or nine tokens before 4 x 4 cells; only one of them is in raster order.
        nine = token.expand(-1, 9, -1)
        assert find_cells(lambda x: torch.cat([nine, self.rows(x)], 1), 32) == (9, 4)
        assert find_cells(lambda x: self.rows(x).transpose(1, 2).unflatten(2, (4, 4)), 32) == (0, 4)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda rows: rows[:, torch.randperm(16)[:4]], "differ between calls"),
            (lambda rows: torch.nn.functional.dropout(rows, 0.1), "differ between calls"),
            (lambda rows: rows[:, TestProbe.PERMUTED], "not cells in raster order"),
            (lambda rows: rows.unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2), "not cells in raster order"),
            (lambda rows: torch.cat([rows, rows[:, :1]], 1), "not cells in raster order"),
            (lambda rows: rows[:, ::4], "not cells in raster order"),
            (lambda rows: rows.mean(1, keepdim=True), "not a square grid"),
            (lambda rows: rows[:, :, :12].unflatten(1, (4, 4)), "not a square grid"),
            (lambda rows: rows[:, :, :4].unflatten(1, (4, 4)), "not cells in raster order"),
            (lambda rows: rows * float("nan"), "differ between calls|not finite"),
        ],
    )
    def test_refused(self, change, message):
        with pytest.raises(ValueError, match=message):
            find_cells(lambda frames: change(self.rows(frames)), 32)


@torch.no_grad()
def test_pixels_methods_act_after_the_encoder(tmp_path):
    _, model, _ = next(models())
    model.eval().save_pretrained(tmp_path)
    tokens = Pipeline("rlt | tome(5)", load_encoder(tmp_path))(torch.zeros(1, 4, 3, 40, 50, dtype=torch.uint8))
    assert tokens.N == 5
    assert tokens.sizes.sum() == 64
    with pytest.raises(ValueError, match="does not support"):
        Pipeline("tome_in_encoder(r=1)", load_encoder(tmp_path))


def test_folders_that_are_not_frame_encoders(tmp_path):
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not an encoder of single frames"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    with pytest.raises(ValueError, match="cannot load it"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("family", ["siglip", "clip"])
@torch.no_grad()
def test_settings_that_a_config_leaves_out(family, tmp_path):
    """Published configs list only what differs from the defaults of their family."""
    import transformers

    names = {"siglip": "SiglipVision", "clip": "CLIPVision"}[family]
    config = getattr(transformers, f"{names}Config")(**SMALL, image_size=64, patch_size=32 if family == "clip" else 16)
    torch.manual_seed(0)
    model = getattr(transformers, f"{names}Model")(config).eval()
    for name, parameter in model.named_parameters():
        if "fc1" in name:
            parameter.mul_(20)  # so that activations differ
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    for name in ("hidden_act", "layer_norm_eps", "patch_size"):
        content.pop(name, None)
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    encoder = load_encoder(tmp_path, device="cpu")
    frames = torch.rand(1, 1, 3, 64, 64)
    mean, std = (torch.tensor(value)[:, None, None] for value in (encoder.mean, encoder.std))
    reloaded = type(model).from_pretrained(tmp_path).eval()
    hidden = reloaded(pixel_values=(frames[0] - mean) / std).last_hidden_state[0]
    torch.testing.assert_close(encoder(frames)[0].features[0], hidden[-encoder(frames)[0].N :], rtol=1e-5, atol=1e-5)
