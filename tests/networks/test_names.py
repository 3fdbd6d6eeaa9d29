"""One config for all networks: old names in files are read, and refused elsewhere with the new name."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch

from fewtokens import networks as models
from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.encoders import ViT, ViTConfig, VitEncoder, load_encoder
from fewtokens.encoders.config import OLD_NAMES, current_names, make_vit_config
from fewtokens.networks.pretrained import PRETRAINING, load_pretraining
from fewtokens.networks.pretraining import PretrainingConfig, ToBo, ToBoConfig
from fewtokens.train.checkpoint import check_same_run
from fewtokens.train.pretraining_presets import accepted_settings, make_pretraining
from fewtokens.train.settings import parse_setting, plain

# The configs as earlier versions wrote them.
OLD_VIT = {
    "width": 16, "depth": 2, "heads": 2, "hidden": 24, "patch": 4, "tubelet": 2, "frames": 4, "size": [8, 12],
    "classes": 3, "head": "token", "attention": "joint", "temporal_depth": 4, "learner": "", "at": 0, "fuser": "",
    "fuser_mix": "frame", "fuser_gate": "linear", "stochastic_depth": 0.0, "head_bias": 0.0,
    "activation": "gelu_pytorch_tanh", "layer_scale": False, "eps": 1e-6, "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}  # fmt: skip
OLD_CONVOLUTIONS = {
    "stem": 8, "depths": [1, 1], "widths": [8, 16], "inner": [8, 24], "last": 24, "hidden": 32, "classes": 5,
    "module": "conv2d+conv1d", "replaced": [0], "reading": "paper_fit", "num_tokens": 3, "frames": 4, "keys": 8,
    "heads": 4, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
}  # fmt: skip
OLD_TOBO = {
    "width": 32, "depth": 1, "heads": 2, "patch": 8, "size": [16, 24], "mask_ratio": 0.5, "decoder_width": 16,
    "decoder_depth": 1, "decoder_heads": 4, "distance": "mse", "auxiliary_weight": 1.0, "bottleneck_tokens": 3,
    "bottleneck_position": "zero",
}  # fmt: skip


def with_config(folder, config: dict) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config": config}))


class TestFilesOfEarlierVersions:
    def test_a_classifier(self, tmp_path):
        shape = {"dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24, "patch_size": 4, "image_size": (8, 12)}
        config = models.VisionConfig(**shape, tubelet_size=2, num_frames=4, num_classes=3, head="token")
        model = models.VisionTransformer(config).eval()
        with_config(model.save_pretrained(tmp_path), OLD_VIT)
        again = models.load(tmp_path)
        assert again.config == config
        clip = torch.rand(1, 4, 3, 8, 12)
        assert torch.equal(again(clip), model(clip))

    def test_convolutions(self, tmp_path):
        """Its config has a setting named hidden, which is kept."""
        values = current_names({name: value for name, value in OLD_CONVOLUTIONS.items() if name != "hidden"})
        model = models.X2plus1d(models.X2plus1dConfig(**values, hidden=32)).eval()
        with_config(model.save_pretrained(tmp_path), OLD_CONVOLUTIONS)
        again = models.load(tmp_path)
        assert again.config == model.config
        assert (again.config.hidden, again.config.dims, again.config.num_heads) == (32, (8, 16), 4)

    def test_a_pre_training_network(self, tmp_path):
        config = ToBoConfig(
            dim=32, depth=1, num_heads=2, patch_size=8, image_size=(16, 24), mask_ratio=0.5, decoder_dim=16,
            decoder_depth=1, decoder_num_heads=4, bottleneck_tokens=3,
        )  # fmt: skip
        model = ToBo(config).eval()
        with_config(model.save_pretrained(tmp_path), OLD_TOBO)
        assert load_pretraining(tmp_path).config == config
        frames = torch.rand(1, 1, 3, 16, 24)
        tokens, _ = load_encoder(tmp_path, device="cpu")(frames)
        assert tokens.features.shape == (1, 6, 32)
        assert tokens.num_prefix == 3

    def test_the_encoder_of_a_video_language_model(self):
        old = {"width": 32, "depth": 2, "heads": 4, "patch": 7, "positions": [3, 4], "hidden": 0, "class_token": False,
               "registers": 2, "qkv_bias": True, "gated": True, "eps": 1e-5}  # fmt: skip
        config = make_vit_config(old, "config.json")
        assert (config.dim, config.num_heads, config.num_registers, config.grid) == (32, 4, 2, (1, 3, 4))
        assert make_vit_config(json.loads(json.dumps(asdict(config))), "config.json") == config

    def test_a_pre_training_run_resumes(self, tmp_path):
        recipe = make_pretraining("tobo_tiny")
        before = plain(recipe)
        old = {new: name for name, new in OLD_NAMES.items()}
        before["network"] = {old.get(name, name): value for name, value in before["network"].items()}
        assert {"width", "heads", "patch", "decoder_width", "decoder_heads"} <= before["network"].keys()
        head = {"step": 1, "items": 3, "settings": before}
        assert check_same_run(head, recipe, 3, tmp_path) == []
        before["network"]["width"] = 64
        with pytest.raises(ValueError, match=r"contains a run with other settings \(network\)"):
            check_same_run(head, recipe, 3, tmp_path)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"width": "wide"}, "vit: dim must be a whole number"), ({"color": 3}, "vit: unknown settings color"),
            ({"heads": 5}, "vit: dim 384 must be a multiple of num_heads 5"),
            ({"patch": 300}, "must be at least patch_size"),
            ({"positions": [3, 4]}, "unknown settings positions"), ({"width": 3, "dim": 6}, "width is now called dim"),
        ],
    )  # fmt: skip
    def test_their_values_are_checked(self, values, message):
        with pytest.raises(ValueError, match=message):
            make_vit_config(values, "vit")


class TestOldNamesElsewhere:
    def test_errors_contain_the_new_name(self):
        with pytest.raises(ValueError, match=r"^vit_s16: width is now called dim$"):
            models.build("vit_s16", width=64)
        with pytest.raises(ValueError, match=r"^x2plus1d_m: heads is now called num_heads$"):
            models.build("x2plus1d_m", heads=64)
        with pytest.raises(ValueError, match=r"^decoder_width is now called decoder_dim$"):
            make_pretraining("tobo_tiny", decoder_width=64)
        for name, new in (("width", "dim"), ("heads", "num_heads"), ("patch", "patch_size")):
            with pytest.raises(ValueError, match=rf"^{name} is now called {new}$"):
                parse_setting(f"{name}=8", accepted_settings("tobo"))

    def test_unknown_names(self):
        with pytest.raises(ValueError, match="unknown settings color"):
            models.build("vit_s16", color=64)
        with pytest.raises(ValueError, match="tobo has no setting color"):
            make_pretraining("tobo_tiny", color=64)


class TestOneViT:
    def config(self, **changes) -> models.VisionConfig:
        shape = {"dim": 16, "depth": 3, "num_heads": 2, "patch_size": 4, "image_size": (16, 24), "num_classes": 5}
        return models.VisionConfig(**(shape | {"mean": (0, 0, 0), "std": (1, 1, 1)} | changes))

    @pytest.mark.parametrize(
        "changes",
        [{}, {"qk_norm": True, "num_registers": 2}, {"gated": True, "norm_first": True, "norm_last": False},
         {"layer_scale": True, "qkv_bias": False, "patch_bias": False, "mlp_dim": 24, "activation": "quick_gelu"}],
    )  # fmt: skip
    def test_the_classifier_is_the_encoder_and_a_head(self, changes):
        torch.manual_seed(0)
        model = models.VisionTransformer(self.config(head="token", **changes)).eval()
        vit = ViT(model.config.encoder()).eval()
        state = {name: value for name, value in model.state_dict().items() if not name.startswith("head.")}
        state["patches.weight"] = state["patches.weight"][:, :, 0]
        state["positions"] = state["positions"][0]
        vit.load_state_dict(state)
        frames = torch.rand(2, 1, 3, 16, 24)
        embedded = vit.embed(frames[:, 0])
        tokens, _ = vit.walk(Tokens.from_cells(embedded.flatten(1, 2), Grid(1, 4, 6)))
        named = model.intermediates(frames)
        torch.testing.assert_close(named["tokens"], tokens.features, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(named["pre_logits"], tokens.prefix[:, 0], rtol=1e-4, atol=1e-5)

    def test_a_pooling_head_excludes_registers(self):
        model = models.VisionTransformer(self.config(num_registers=3)).eval()
        assert len(model.registers.unique(dim=0)) == 3
        named = model.intermediates(torch.rand(2, 1, 3, 16, 24))
        assert named["tokens"].shape == (2, 24, 16)
        torch.testing.assert_close(named["pre_logits"], named["tokens"].mean(1))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"class_token": True}, "requires head='token'"), ({"antialias": True}, "antialias is not supported"),
            ({"num_registers": 1, "learner": "tokenlearner('3/frame')"}, "no registers"),
            ({"num_registers": 1, "attention": "factorized_self"}, "no registers"),
        ],
    )  # fmt: skip
    def test_incompatible_settings(self, changes, message):
        with pytest.raises(ValueError, match=message):
            self.config(**changes)

    def test_methods_between_blocks_require_joint_attention(self):
        model = models.VisionTransformer(self.config(learner="tokenlearner('3/frame')"))
        with pytest.raises(ValueError, match="no learner"):
            model.walk(None)

    def test_a_network_for_clips_cannot_encode_frames(self):
        with pytest.raises(ValueError, match="cannot encode single frames"):
            VitEncoder(models.VisionTransformer(self.config()))

    def test_every_config_is_a_vit_config(self):
        assert issubclass(models.VisionConfig, ViTConfig)
        for kind in PRETRAINING.values():
            assert issubclass(kind.config_type, PretrainingConfig)
            assert issubclass(kind.config_type, ViTConfig)
            assert type(kind.config_type().encoder()) is ViTConfig

    def test_pre_training_takes_the_encoders_settings(self):
        recipe = make_pretraining("mae_tiny", num_registers=2, qk_norm=True, mlp_dim=0)
        assert recipe.config().encoder() == ViTConfig(
            dim=192, depth=6, num_heads=3, patch_size=8, image_size=(64, 64), num_registers=2, qk_norm=True
        )
        with pytest.raises(ValueError, match="requires class_token=True"):
            make_pretraining("mae_tiny", class_token=False)
        with pytest.raises(ValueError, match="num_registers must be bottleneck_tokens - 1"):
            make_pretraining("tobo_tiny", num_registers=3)
        assert make_pretraining("tobo_tiny", bottleneck_tokens=3).config().num_registers == 2
