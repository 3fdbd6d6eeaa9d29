"""Encoders are modules: a pipeline moves them, and they report their device and dtype."""

from __future__ import annotations

import json

import pytest
import torch

from fewtokens.cli.resume import check_request, check_settings
from fewtokens.core.identity import rename_encoder_keys
from fewtokens.core.pipeline import Pipeline
from fewtokens.encoders import Encoder, Patches, ViT, ViTConfig, VitEncoder, load_encoder, pick_device, pick_dtype
from fewtokens.encoders.hf import HfEncoder
from fewtokens.networks import VisionConfig, VisionTransformer
from fewtokens.networks.encoder import ModelEncoder


def hf_encoder(folder):
    """A transformers network without a counterpart in this library."""
    transformers = pytest.importorskip("transformers")
    config = transformers.DINOv3ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    transformers.DINOv3ViTModel(config).save_pretrained(folder)
    return load_encoder(folder, device=torch.device("cpu"), dtype=torch.float32)


def encoder(kind: str, folder) -> Encoder:
    torch.manual_seed(0)
    if kind == "patches":
        return Patches(8)
    if kind == "vit":
        return VitEncoder(ViT(ViTConfig(dim=16, depth=2, num_heads=2, patch_size=8, image_size=(32, 32))).eval())
    if kind == "network":
        shape = VisionConfig(dim=16, depth=2, num_heads=2, patch_size=8, image_size=(32, 32), num_classes=3)
        return ModelEncoder(VisionTransformer(shape).eval())
    return hf_encoder(folder)


KINDS = ("patches", "vit", "network", "hf")


def video() -> torch.Tensor:
    return torch.randint(0, 256, (1, 2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
class TestMoves:
    @torch.inference_mode()
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
    def test_the_pipeline_moves_its_encoder_to_another_dtype(self, kind, dtype, tmp_path):
        before = encoder(kind, tmp_path)
        pipeline = Pipeline("uniform(5)", before)
        expected = pipeline(video()).features
        assert before.dtype == expected.dtype == torch.float32
        features = pipeline.to(dtype)(video()).features
        assert pipeline.encoder is before
        assert before.dtype == features.dtype == dtype
        tolerance = {torch.float64: 1e-5, torch.float16: 0.02, torch.bfloat16: 0.1}[dtype]
        torch.testing.assert_close(features.float(), expected, rtol=tolerance, atol=tolerance)
        assert not torch.equal(features.double(), expected.double()) or kind == "patches"

    def test_half_and_eval(self, kind, tmp_path):
        pipeline = Pipeline("uniform(5)", encoder(kind, tmp_path))
        assert pipeline.encoder is not None
        assert pipeline.half().encoder.dtype == torch.float16
        assert pipeline.train().encoder.training
        assert not any(module.training for module in pipeline.eval().modules())

    @torch.inference_mode()
    def test_to_another_device(self, kind, tmp_path):
        pipeline = Pipeline("uniform(5)", encoder(kind, tmp_path))
        assert pipeline.encoder is not None
        assert pipeline.encoder.device == torch.device("cpu")
        assert pipeline.to("meta").encoder.device == torch.device("meta")
        if kind in ("vit", "hf"):
            return  # They read token counts, which meta tensors do not have.
        # Frames may be on another device.
        tokens, _ = pipeline.encoder(video())
        assert tokens.features.device == torch.device("meta")
        assert tokens.features.shape == (1, 32, pipeline.encoder.dim)

    def test_it_describes_itself(self, kind, tmp_path):
        loaded = encoder(kind, tmp_path)
        description = loaded.describe()
        assert list(description) == ["id", "options", "fingerprint"]
        assert json.loads(json.dumps(description)) == description
        assert isinstance(description["fingerprint"], str) == (kind == "hf")
        assert isinstance(loaded, HfEncoder) == (kind == "hf")
        assert set(loaded.cues) <= {"pixels", "keys", "attention", "shift", "frame_global"}
        assert (loaded.decode is None) == (kind != "patches")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_to_cuda_and_frames_from_the_cpu(kind, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pipeline = Pipeline("uniform(5)", encoder(kind, tmp_path).cpu())
    expected = pipeline(video()).features
    features = pipeline.to("cuda")(video()).features
    assert features.device.type == "cuda"
    torch.testing.assert_close(features.cpu(), expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(pipeline(video().cuda()).features, features)


def test_patches_decode_in_any_dtype():
    loaded = Patches(8)
    frames = video()
    tokens, _ = loaded(frames)
    assert loaded.decode is not None
    back = loaded.decode(tokens.unmerge())
    torch.testing.assert_close(back, frames / 255, rtol=0, atol=1e-6)
    assert list(loaded.state_dict()) == []


class TestDevicesAndDtypes:
    def test_as_text_or_torch_objects(self):
        assert pick_device("cpu") == pick_device(torch.device("cpu")) == torch.device("cpu")
        assert pick_dtype("float16") == pick_dtype(torch.float16) == torch.float16
        loaded = load_encoder("patches", device=torch.device("cpu"), dtype=torch.bfloat16)
        assert (loaded.device, loaded.dtype) == (torch.device("cpu"), torch.bfloat16)

    @pytest.mark.parametrize("dtype", ["float8", "int64", torch.int64, torch.complex64])
    def test_others_are_refused(self, dtype):
        with pytest.raises(ValueError, match=r"dtype must be one of float32, float16, bfloat16, got '"):
            pick_dtype(dtype)

    def test_an_unavailable_device(self):
        with pytest.raises(ValueError, match="no device cuda:77; available: "):
            pick_device(torch.device("cuda:77"))


class TestOldDescriptions:
    """Files of earlier versions contain weights, patch and tubelet."""

    def test_are_read_under_current_names(self):
        old = {"encoder": {"id": "patches", "options": {"patch": 4, "tubelet": 1}, "weights": None}, "seed": 0}
        assert rename_encoder_keys(old) == {"encoder": Patches(4).describe(), "seed": 0}
        assert "weights" in old["encoder"]
        assert rename_encoder_keys(rename_encoder_keys(old)) == rename_encoder_keys(old)

    @pytest.mark.parametrize("odd", [None, [], {}, {"encoder": None}, {"encoder": {"options": 3}}])
    def test_other_values_are_unchanged(self, odd):
        assert rename_encoder_keys(odd) == odd

    def test_runs_resume(self, tmp_path):
        old = {"id": "patches", "options": {"patch": 4, "tubelet": 1}, "weights": None}
        now = {"encoder": Patches(4).describe(), "seed": 0}
        (tmp_path / "settings.json").write_text(json.dumps({"encoder": old, "seed": 0}))
        check_settings(tmp_path / "settings.json", now)
        check_request(tmp_path, {"encoder": old, "seed": 0}, now)
        other = {"encoder": Patches(8).describe(), "seed": 0}
        with pytest.raises(ValueError, match="contains a run with other settings: encoder"):
            check_settings(tmp_path / "settings.json", other)
        with pytest.raises(ValueError, match=r"other settings: encoder "):
            check_request(tmp_path, {"encoder": old, "seed": 0}, other)

    def test_a_pipeline(self, tmp_path):
        path = Pipeline("uniform(3)", Patches(4)).save_pretrained(tmp_path) / "config.json"
        config = json.loads(path.read_text())
        config["encoder"] = {"id": "patches", "options": {"patch": 4, "tubelet": 1}, "weights": None}
        path.write_text(json.dumps(config))
        pipeline = Pipeline.from_pretrained(tmp_path)
        assert isinstance(pipeline.encoder, Patches)
        assert pipeline.encoder.patch_size == 4
