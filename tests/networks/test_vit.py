"""ViT and ViViT, with TokenLearner and without; inflation; saving."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from fewtokens import networks as models
from fewtokens.encoders.vit import resize_positions
from fewtokens.networks.inflate import expand_positions, initialize_from
from fewtokens.networks.vit import VisionConfig, VisionTransformer

SMALL = {"dim": 16, "depth": 3, "num_heads": 2, "patch_size": 4, "image_size": (16, 24), "num_classes": 5}
CLIP = {**SMALL, "tubelet_size": 2, "num_frames": 8}
VARIANTS = {
    "vit": {**SMALL},
    "token": {**SMALL, "head": "token"},
    "learner": {**SMALL, "learner": "tokenlearner('3/frame')", "at": 1},
    "fuser": {**SMALL, "learner": "tokenlearner('3/frame')", "at": 1, "fuser": "fuser"},
    "unpool": {**SMALL, "learner": "tokenlearner('3/frame')", "at": 1, "fuser": "unpool"},
    "reproject": {**SMALL, "learner": "tokenlearner('3/frame')", "at": 1, "fuser": "reproject"},
    "version 1.1": {**SMALL, "learner": "tokenlearner('3/frame', version='1.1')", "at": 0},
    "grid": {**SMALL, "learner": "grid_split('6/frame')", "at": 2},
    "pool": {**SMALL, "learner": "spatial_pool(2)", "at": 2},
    "dense": {**SMALL, "learner": "dense_tokens('3/frame')", "at": 2},
    "pool mlp": {**SMALL, "learner": "pool_mlp('3/frame')", "at": 2},
    "joint": {**CLIP, "head": "token"},
    "clip learner": {**CLIP, "learner": "tokenlearner('3/frame')", "at": 1},
    "clip fuser": {**CLIP, "learner": "tokenlearner('3/frame')", "at": 1, "fuser": "fuser", "fuser_mix": "clip"},
    "factorized_encoder": {**CLIP, "attention": "factorized_encoder", "temporal_depth": 2},
    "factorized_encoder token": {**CLIP, "attention": "factorized_encoder", "temporal_depth": 2, "head": "token"},
    "factorized_self": {**CLIP, "attention": "factorized_self"},
    "factorized_dot": {**CLIP, "attention": "factorized_dot"},
}


def make(name: str) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(VisionConfig(**VARIANTS[name])).eval()


def awake(model: nn.Module) -> nn.Module:
    """Moves all parameters away from zero, so that each affects the output."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def frames(model: VisionTransformer, B: int = 2, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(B, model.config.num_frames, 3, *model.config.image_size, generator=generator)


@pytest.mark.parametrize("name", VARIANTS)
class TestEveryVariant:
    def test_shapes_and_every_gradient(self, name):
        model = awake(make(name)).train()
        logits = model(frames(model))
        assert logits.shape == (2, 5)
        logits.square().sum().backward()
        for label, parameter in model.named_parameters():
            assert parameter.grad is not None, label
            assert bool(parameter.grad.isfinite().all()), label

    def test_uint8_equals_unit_floats(self, name):
        model = awake(make(name))
        bytes_ = (frames(model) * 255).round().to(torch.uint8)
        torch.testing.assert_close(model(bytes_), model(bytes_.float() / 255))

    def test_single_samples_equal_a_batch(self, name):
        model = awake(make(name))
        x = frames(model, B=3)
        torch.testing.assert_close(model(x)[1:2], model(x[1:2]), rtol=1e-4, atol=1e-5)

    def test_another_size(self, name):
        model = awake(make(name))
        if model.config.fuser_mix == "clip":
            pytest.skip("mixes clips of one length")
        t = 2 * model.config.num_frames if model.config.tubelet_size > 1 else 1
        assert bool(model(torch.rand(1, t, 3, 21, 33)).isfinite().all())

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, name, dtype):
        model = awake(make(name))
        x = frames(model)
        expected, actual = model(x), model.to(dtype)(x.to(dtype))
        assert actual.dtype == dtype
        torch.testing.assert_close(actual.float(), expected, rtol=0.1, atol=0.1)

    def test_checkpointing_changes_nothing(self, name):
        model = awake(make(name)).train()
        x = frames(model)
        plain = model(x)
        model.checkpointing = True
        torch.testing.assert_close(model(x), plain)

    def test_saved_and_loaded(self, name, tmp_path):
        model = awake(make(name))
        model.save_pretrained(tmp_path, labels=["a", "b"])
        again = models.load(tmp_path)
        assert again.config == model.config
        assert torch.equal(again(frames(model)), model(frames(model)))
        assert models.read_meta(tmp_path)["labels"] == ["a", "b"]

    def test_names_of_intermediates(self, name):
        model = make(name)
        named = model.intermediates(frames(model))
        assert {"embedded", "block0", "block2", "tokens", "pre_logits", "logits"} <= named.keys()


def test_token_counts():
    x = {name: make(name).intermediates(frames(make(name)))["tokens"].shape for name in ("learner", "fuser")}
    assert x == {"learner": (2, 3, 16), "fuser": (2, 24, 16)}
    clips = {
        name: make(name).intermediates(frames(make(name)))["tokens"].shape for name in ("clip learner", "clip fuser")
    }
    assert clips == {"clip learner": (2, 12, 16), "clip fuser": (2, 96, 16)}


def test_spec_shapes_of_the_encoder():
    """(2,64,192), T=4, S=8, 3 layers, L0=2: 32 tokens without fuser, 64 with fuser."""
    for fuser, tokens in (("", 32), ("fuser", 64)):
        learner = {"learner": "tokenlearner('8/frame')", "at": 2, "fuser": fuser}
        config = VisionConfig(192, 3, 3, patch_size=4, num_frames=4, image_size=(16, 16), **learner)
        model = VisionTransformer(config)
        named = model.intermediates(torch.rand(2, 4, 3, 16, 16))
        assert named["block1"].shape == (2, 64, 192)
        assert named["tokens"].shape == (2, tokens, 192)


def test_a_unit_with_fuser_is_the_identity_at_initialization():
    model = make("fuser")
    named = model.intermediates(frames(model))
    assert torch.equal(named["block1"], named["block0"])
    assert torch.equal(named["block2"], named["block0"])


def test_the_learner_acts_before_its_block():
    model = make("learner")
    x = frames(model)
    named = model.intermediates(x)
    assert named["block0"].shape[1] == 24
    assert named["block1"].shape[1] == 3
    few, _ = model.learners["1"].learn(named["block0"].reshape(2, 4, 6, 16))
    y = model.blocks[1]
    torch.testing.assert_close(y.mlp_half(y.attention_half(few, None, "none")[0]), named["block1"])


def test_tokens_carry_the_maps():
    model = make("clip learner")
    tokens = model.tokens(frames(model), torch.arange(8) / 4).check()
    assert tokens.features.shape == (2, 12, 16)
    assert tokens.attribution.shape == (2, 12, 24)
    assert tokens.grid.shape == (4, 4, 6)
    assert tokens.grid.times.tolist() == [0, 0.5, 1.0, 1.5]
    assert make("fuser").tokens(frames(make("fuser"))).check().N == 24


def test_factorized_dot_product_by_hand():
    """Every head of model 4 against masked attention: within the frame, or at the same position."""
    model = awake(make("factorized_dot"))
    block = model.blocks[0]
    x = torch.randn(2, 4, 6, 16)
    q, k, v = block.attention.project(block.norm1(x).flatten(1, 2))
    frame = torch.arange(24) // 6
    place = torch.arange(24) % 6
    heads = []
    for head in range(2):
        key = frame if head == 0 else place
        allowed = key[:, None] == key[None]
        logits = (q[:, head] @ k[:, head].transpose(1, 2)) / 8**0.5
        heads.append(logits.masked_fill(~allowed, -torch.inf).softmax(-1) @ v[:, head])
    y = x + block.attention.out(torch.cat(heads, -1)).reshape(x.shape)
    torch.testing.assert_close(block(x), block.mlp_half(y), rtol=1e-4, atol=1e-5)


def test_the_factorized_encoder_shares_positions_over_frames(tmp_path):
    """As SpaceTimeViViT in scenic: one set of spatial positions for all frames, one set of temporal positions."""
    model = make("factorized_encoder token")
    assert model.positions.shape == (1, 4, 6, 16)
    still = torch.rand(1, 2, 3, 16, 24).repeat(1, 4, 1, 1, 1)
    embedded = model.embed(model.prepare(still))
    assert torch.equal(embedded[:, 1:], embedded[:, :-1])
    assert model.temporal_positions.shape == (4, 16)
    assert model.temporal_token_position.shape == (16,)
    # Earlier versions had separate positions for each frame.
    model.positions = nn.Parameter(torch.zeros(4, 4, 6, 16))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="saved by an earlier fewtokens"):
        models.load(tmp_path)


def test_factorized_self_equals_the_image_model_at_initialization():
    image, video = make("vit"), make("factorized_self")
    blocks = {name: value for name, value in image.state_dict().items() if name.startswith("blocks.")}
    video.load_state_dict(video.state_dict() | blocks)
    x = torch.randn(2, 4, 6, 16)
    block = image.blocks[0]
    alone = block.mlp_half(block.attention_half(x.flatten(0, 1), None, "none")[0]).reshape(x.shape)
    torch.testing.assert_close(video.blocks[0](x), alone)


class TestInflation:
    def image(self) -> VisionTransformer:
        return awake(make("vit"))

    def test_central(self):
        """The output is that of the image model on the second frame of each tubelet."""
        image, video = self.image(), make("joint")
        names = initialize_from(video, image)
        still = torch.rand(1, 1, 3, 16, 24)
        clip = torch.rand(1, 8, 3, 16, 24)
        clip[:, 1::2] = still
        torch.testing.assert_close(
            video.embed(video.prepare(clip)), image.embed(image.prepare(still)).expand(1, 4, -1, -1, -1)
        )
        assert "head.weight" in names["initialized"]
        assert "blocks.2.mlp.fc2.weight" in names["copied"]

    def test_average(self):
        image, video = self.image(), make("joint")
        initialize_from(video, image, how="average")
        still = torch.rand(1, 1, 3, 16, 24)
        torch.testing.assert_close(
            video.embed(video.prepare(still.expand(1, 8, -1, -1, -1))),
            image.embed(image.prepare(still)).expand(1, 4, -1, -1, -1),
        )

    @pytest.mark.parametrize(
        "name", ["clip learner", "clip fuser", "factorized_encoder", "factorized_self", "factorized_dot"]
    )
    def test_into_every_video_network(self, name):
        image, video = self.image(), make(name)
        initialize_from(video, image)
        assert torch.equal(video.blocks[1].mlp.fc1.weight, image.blocks[1].mlp.fc1.weight)

    def test_from_a_saved_folder(self, tmp_path):
        self.image().save_pretrained(tmp_path)
        video = make("joint")
        initialize_from(video, tmp_path)
        assert torch.equal(video.norm_last.weight, self.image().norm_last.weight)

    def test_positions(self):
        grid = torch.randn(1, 4, 6, 16)
        assert torch.equal(expand_positions(grid, (4, 4, 6), "tile"), grid.expand(4, -1, -1, -1))
        assert expand_positions(grid, (4, 8, 8), "resize_tile").shape == (4, 8, 8, 16)
        torch.testing.assert_close(
            expand_positions(grid, (4, 8, 8), "resize"), expand_positions(grid, (4, 8, 8), "resize_tile")
        )
        with pytest.raises(ValueError, match="resize_tile"):
            expand_positions(grid, (4, 8, 8), "tile")
        ramp = torch.arange(4.0).reshape(1, 1, 4, 1).expand(1, 3, 4, 1)
        torch.testing.assert_close(resize_positions(ramp, (1, 3, 2)).flatten(), torch.tensor([0.5, 2.5] * 3))

    def test_blocks_that_do_not_fit(self):
        wide = VisionTransformer(VisionConfig(**{**SMALL, "dim": 32}))
        with pytest.raises(ValueError, match="must have the shape"):
            initialize_from(make("joint"), wide)
        scaled = VisionTransformer(VisionConfig(**{**SMALL, "layer_scale": True}))
        with pytest.raises(ValueError, match="have parts that this model does not have"):
            initialize_from(make("joint"), scaled)
        deep = VisionTransformer(VisionConfig(**{**CLIP, "depth": 5}))
        with pytest.raises(ValueError, match="fewer blocks"):
            initialize_from(deep, make("vit"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "cls"}, "head must be"),
        ({"attention": "axial"}, "attention must be"),
        ({"learner": "tokenlearner('3/frame')", "at": 3}, "at must be a block index"),
        ({"learner": "tokenlearner('3/frame')", "head": "token"}, "a learner requires"),
        ({"fuser": "fuser"}, "requires a learner"),
        ({"learner": "tome(keep=0.5)"}, "must be one per-frame learner"),
        ({"learner": "spatial_pool(2)", "fuser": "fuser"}, "fixed number of tokens"),
        ({"image_size": (2, 2)}, "must be at least patch_size"),
        ({"tubelet_size": 2}, "must be at least tubelet_size"),
        ({"num_classes": 0}, "at least 1"),
    ],
)
def test_invalid_configs(changes, message):
    with pytest.raises(ValueError, match=message):
        VisionTransformer(VisionConfig(**{**SMALL, **changes}))


def test_frames_that_do_not_fit():
    with pytest.raises(ValueError, match="frames must be"):
        make("vit")(torch.rand(2, 3, 16))
    with pytest.raises(ValueError, match="must be at least one tubelet"):
        make("joint")(torch.rand(1, 1, 3, 16, 24))


def test_stochastic_depth_only_in_training():
    model = VisionTransformer(VisionConfig(**{**SMALL, "stochastic_depth": 0.9}))
    awake(model)
    x = frames(model)
    assert torch.equal(model.eval()(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


class TestBrokenFolders:
    def test_errors_name_the_problem(self, tmp_path):
        with pytest.raises(ValueError, match=r"no config\.json"):
            models.load(tmp_path)
        model = make("vit")
        model.save_pretrained(tmp_path)
        weights = tmp_path / "model.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match="invalid safetensors"):
            models.load(tmp_path)
        make("token").save_pretrained(tmp_path / "other")
        (tmp_path / "other" / "model.safetensors").write_bytes(whole)
        with pytest.raises(ValueError, match="missing: class_position"):
            models.load(tmp_path / "other")
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(ValueError, match="invalid JSON"):
            models.load(tmp_path)

    @pytest.mark.parametrize("name", ["factorized_encoder", "fuser"])
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"dim": 10**9}, "of a different shape|cannot be built"), ({"dim": 10**18}, "cannot be built"),
            ({"depth": 10**9}, "blocks, which do not fit"), ({"depth": 0}, "at least 1"),
            ({"num_heads": 0}, "at least 1"),
            ({"dim": [16]}, "dim must be a whole number"), ({"image_size": 16}, "image_size must be a list of 2"),
            ({"image_size": [10**9, 10**9]}, "cannot be built|of a different shape"), ({"mlp_dim": -4}, "at least 0"),
            ({"eps": "small"}, "eps must be a finite number"), ({"eps": float("nan")}, "eps must be a finite number"),
            ({"num_classes": True}, "num_classes must be a whole number"), ({"std": [0.5, 0.5, 0.0]}, "std above 0"),
            ({"learner": {"a": 1}}, "learner must be a string"),
            ({"attention": ["joint"]}, "attention must be a string"),
            ({"mean": None}, "mean must be a list of 3"), ({"tubelet_size": -2}, "at least 1"),
        ],
    )  # fmt: skip
    def test_config_values_are_checked(self, name, changes, message, tmp_path):
        make(name).save_pretrained(tmp_path)
        content = json.loads((tmp_path / "config.json").read_text())
        content["config"] |= changes
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message) as caught:
            models.load(tmp_path)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[]", "must be an object"), ("[" * 100_000, "nested too deeply"),
            ('{"fewtokens_model": ["vit"]}', "not the config"),
            ('{"fewtokens_model": "vit", "config": 3}', "not the config"), ('{"fewtokens_model": "gpt", "config": {}}',
             "got 'gpt'"), ("", "invalid JSON"),
        ],
    )  # fmt: skip
    def test_invalid_config_files(self, text, message, tmp_path):
        make("vit").save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message) as caught:
            models.load(tmp_path)
        assert "\n" not in str(caught.value)
        assert not models.is_saved(tmp_path)

    def test_metadata_is_checked(self, tmp_path):
        make("vit").save_pretrained(tmp_path, labels=["a", 1], trained={})
        with pytest.raises(ValueError, match=r"labels\[1\] must be a string"):
            models.read_meta(tmp_path)
        make("vit").save_pretrained(tmp_path, trained={"fps": "fast"})
        with pytest.raises(ValueError, match=r"trained\.fps must be a finite number"):
            models.read_meta(tmp_path)


@pytest.mark.parametrize("name", models.names())
def test_presets_can_be_built(name):
    model = models.build_on_meta(name)
    assert models.describe(model)["parameters"] > 0
    rebuilt = models.preset(name)
    assert rebuilt[0] is type(model)


def test_the_spelling_of_earlier_versions():
    kind, settings = models.preset("vivit_b16_factorised_encoder")
    assert (kind, settings) == models.preset("vivit_b16_factorized_encoder")
    assert models.VisionConfig(attention="factorised_self") == models.VisionConfig(attention="factorized_self")


def test_unknown_presets():
    with pytest.raises(ValueError, match="did you mean"):
        models.build("tokenlearner_vit_b16_8at")
    with pytest.raises(ValueError, match="unknown settings color"):
        models.build("vit_s16", color=3)
