"""Our ViT: equal to transformers, and to a slow reference of merging inside it."""

from __future__ import annotations

import json

import pytest
import torch

from fewtokens.core import registry
from fewtokens.core.grid import Grid
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.tokens import Tokens
from fewtokens.encoders import VitEncoder, load_encoder
from fewtokens.encoders.transformer import Mlp
from fewtokens.encoders.vit import ViT, ViTConfig, resize_positions
from fewtokens.methods.merging.tome_in_encoder import TomeInEncoder
from fewtokens.networks.inflate import matching_config
from tests.helpers.data import data_path

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 16, "patch_size": 4}


def tiny(family: str, **changes):
    """A transformers model with every parameter random, so that no zero or one hides an error."""
    transformers = pytest.importorskip("transformers")
    model = getattr(transformers, f"{family}Model")
    config = getattr(transformers, f"{family}Config")
    extra = {} if "Dinov2" in family else {"intermediate_size": 48}
    torch.manual_seed(0)
    network = model(config(**SMALL, **extra, **changes)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


CASES = [
    ("ViT", {}),
    ("ViT", {"qkv_bias": False, "hidden_act": "gelu_pytorch_tanh"}),
    ("Dinov2", {}),
    ("Dinov2", {"use_swiglu_ffn": True, "mlp_ratio": 2}),
    ("Dinov2WithRegisters", {"num_register_tokens": 3}),
    ("CLIPVision", {}),
    ("SiglipVision", {"vision_use_head": False}),
    ("SiglipVision", {}),
]


@pytest.mark.parametrize(("family", "changes"), CASES)
@pytest.mark.parametrize("size", [(16, 16), (24, 16), (12, 20)])
def test_equals_transformers(family, changes, size, tmp_path):
    model = tiny(family, **changes)
    model.save_pretrained(tmp_path)
    frames = torch.rand(1, 2, 3, *size)
    encoder = load_encoder(tmp_path)
    with torch.no_grad():
        tokens, _ = encoder(frames)
        mean, std = (torch.tensor(v)[:, None, None] for v in (encoder.mean, encoder.std))
        extra = {} if "Dinov2" in family else {"interpolate_pos_encoding": True}
        expected = model(pixel_values=(frames[0] - mean) / std, **extra).last_hidden_state
    P = encoder.vit.config.class_token + encoder.vit.config.num_registers
    torch.testing.assert_close(tokens.features[0].unflatten(0, (2, -1)), expected[:, P:], rtol=1e-4, atol=1e-4)
    if P:
        torch.testing.assert_close(tokens.prefix[0].unflatten(0, (2, -1)), expected[:, :P], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["CLIP", "Siglip"])
def test_the_vision_part_of_a_larger_checkpoint(family, tmp_path):
    transformers = pytest.importorskip("transformers")
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision = {**SMALL, "intermediate_size": 48}
    config = getattr(transformers, f"{family}Config")(text_config=text, vision_config=vision)
    model = getattr(transformers, f"{family}Model")(config).eval()
    model.save_pretrained(tmp_path)
    frames = torch.rand(1, 1, 3, 16, 16)
    encoder = load_encoder(tmp_path)
    with torch.no_grad():
        tokens, _ = encoder(frames)
        mean, std = (torch.tensor(v)[:, None, None] for v in (encoder.mean, encoder.std))
        expected = model.vision_model(pixel_values=(frames[0] - mean) / std).last_hidden_state
    torch.testing.assert_close(tokens.features[0], expected[0, -16:], rtol=1e-4, atol=1e-4)


def test_real_weights_equal_transformers():
    transformers = pytest.importorskip("transformers")
    folder = data_path("weights", "dinov2-small")
    model = transformers.Dinov2Model.from_pretrained(folder, dtype=torch.float32).eval()
    encoder = load_encoder(folder)
    frames = torch.rand(1, 1, 3, 126, 98)
    with torch.no_grad():
        tokens, _ = encoder(frames)
        mean, std = (torch.tensor(v)[:, None, None] for v in (encoder.mean, encoder.std))
        expected = model(pixel_values=(frames[0] - mean) / std).last_hidden_state
    torch.testing.assert_close(tokens.features, expected[:, 1:], rtol=1e-4, atol=1e-4)
    assert len(encoder.describe()["fingerprint"]) == 64


@pytest.fixture
def vit():
    torch.manual_seed(0)
    network = ViT(
        ViTConfig(dim=32, depth=4, num_heads=4, patch_size=4, image_size=(24, 24), num_registers=2, qk_norm=True)
    ).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def frames(B=2, T=3, H=24, W=20, seed=0):
    g = torch.Generator().manual_seed(seed)
    still = torch.rand(B, 1, 3, H, W, generator=g).expand(-1, T, -1, -1, -1).clone()
    still[:, 1:, :, 8:16, 8:16] = torch.rand(B, T - 1, 3, 8, 8, generator=g)
    return still


class TestEncoder:
    @pytest.fixture(autouse=True)
    def without_gradient(self):
        with torch.no_grad():
            yield

    def test_batch_size_changes_nothing(self, vit):
        one, _ = VitEncoder(vit, batch=1)(frames())
        all_, _ = VitEncoder(vit, batch=100)(frames())
        torch.testing.assert_close(one.features, all_.features, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(one.prefix, all_.prefix, rtol=1e-4, atol=1e-4)

    def test_progress(self, vit):
        encoder, calls = VitEncoder(vit, batch=4), []
        encoder.progress = lambda done, total: calls.append((done, total))
        encoder(frames())
        assert calls == [(4, 6), (6, 6)]

    def test_grid_times_and_prefix(self, vit):
        encoder = VitEncoder(vit)
        tokens, _ = encoder(frames(), torch.tensor([0.0, 0.5, 1.0]))
        assert tokens.grid == encoder.grid(3, 24, 20, torch.tensor([0.0, 0.5, 1.0]))
        assert tokens.grid.shape == (3, 6, 5)
        assert tokens.prefix.shape == (2, 9, 32)

    def test_odd_sizes_and_bytes(self, vit):
        encoder = VitEncoder(vit)
        video = (torch.rand(1, 1, 3, 23, 9) * 255).byte()
        tokens, _ = encoder(video)
        assert tokens.grid.shape == (1, 6, 2)
        same, _ = encoder(video.float() / 255)
        torch.testing.assert_close(tokens.features, same.features)
        assert encoder(torch.rand(1, 1, 3, 1, 1))[0].N == 1

    def test_without_merging_it_equals_the_model(self, vit):
        plain, _ = VitEncoder(vit)(frames())
        walked, _ = VitEncoder(vit)(frames(), block_methods=[TomeInEncoder(r=0)])
        assert torch.equal(plain.assignment, walked.assignment)
        torch.testing.assert_close(plain.features, walked.features, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("r", [1, 3, (2, -1), [4, 0, 4]])
    def test_merging_inside(self, vit, r):
        full, _ = VitEncoder(vit)(frames())
        tokens, _ = VitEncoder(vit)(frames(), block_methods=[TomeInEncoder(r=r)])
        tokens.check()
        assert tokens.N < full.N
        torch.testing.assert_close(tokens.sizes.sum(1), torch.full((2,), 90.0))
        assert bool((tokens.assignment >= 0).all())
        assert tokens.prefix.shape == full.prefix.shape
        t = tokens.positions[0, :, 0]
        assert bool((t[1:] >= t[:-1]).all())

    def test_three_ways_to_weight_attention(self, vit):
        out = {}
        for how in ("channels", "bias", "none"):
            vit.proportional = how
            out[how], _ = VitEncoder(vit)(frames(), block_methods=[TomeInEncoder(r=4)])
        torch.testing.assert_close(out["channels"].features, out["bias"].features, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(out["channels"].features, out["none"].features, atol=1e-3)

    def test_pixels_methods_reduce_the_work_of_the_encoder(self, vit):
        """Each frame's cells patches alone give the same features; runs are assigned across frames."""
        video = frames()
        pipeline = Pipeline("rlt(tau=0.01)", VitEncoder(vit))
        tokens = pipeline(video)
        tokens.check()
        assert tokens.count.tolist() == [30 + 2 * 4] * 2
        torch.testing.assert_close(tokens.sizes.sum(1), torch.full((2,), 90.0))
        assert bool((tokens.assignment >= 0).all())
        encoder = VitEncoder(vit)
        for t in range(3):
            patches = encoder._embed(video[0, t : t + 1], Grid(1, 6, 5))
            cells = tokens.cell[0][tokens.frame[0] == t] % 30
            alone = Tokens.from_cells(patches[:, cells], Grid(1, 1, len(cells)))
            expected, _ = vit.walk(alone)
            got = tokens.features[0][tokens.frame[0] == t]
            torch.testing.assert_close(got, expected.features[0], rtol=1e-4, atol=1e-4)

    def test_pixels_and_encoder_methods_together(self, vit):
        tokens = Pipeline("rlt(tau=0.01) | tome_in_encoder(r=2) | uniform(10)", VitEncoder(vit))(frames())
        tokens.check()
        assert tokens.N == 10

    def test_cues(self, vit):
        encoder = VitEncoder(vit)
        tokens, cues = encoder(frames(), needs=("keys", "attention", "frame_global", "pixels"))
        assert cues["keys"].shape == (2, 90, 8)
        assert cues["attention"].shape == (2, 90)
        assert cues["frame_global"].shape == (2, 3, 32)
        assert cues["pixels"].shape == (2, 90, 1, 48)
        torch.testing.assert_close(cues["frame_global"][:, 1], tokens.prefix[:, 3])
        # The attention to all keys of a frame sums to 1, including class and register tokens.
        received = cues["attention"].unflatten(1, (3, 30)).sum(2)
        assert bool((received > 0).all() and (received < 1).all())
        assert torch.equal(cues["pixels"][0, 31, 0, :3], frames()[0, 1, :, 0, 4])

    def test_cues_follow_merged_tokens(self, vit):
        _, full = VitEncoder(vit)(frames(), needs=("attention",))
        tokens, cues = VitEncoder(vit)(
            frames(), needs=("attention", "pixels"), block_methods=[TomeInEncoder(r=[0, 0, 0, 5])]
        )
        assert cues["attention"].shape == (2, tokens.N)
        # After merging, the cue of a token is the mean over its members.
        members = full["attention"][0][tokens.assignment[0] == 7]
        torch.testing.assert_close(cues["attention"][0, 7], members.mean())

    def test_half_precision(self, vit):
        wide, _ = VitEncoder(vit)(frames())
        merged, _ = VitEncoder(vit)(frames(), block_methods=[TomeInEncoder(r=3)])
        half = VitEncoder(vit.to(torch.bfloat16))
        plain, _ = half(frames())
        assert plain.features.dtype == torch.bfloat16
        assert (plain.features.float() - wide.features).norm() / wide.features.norm() < 0.05
        # Keys rounded to bfloat16 may pair tokens differently, but counts are equal and no token is lost.
        some, _ = half(frames(), block_methods=[TomeInEncoder(r=3)])
        assert some.check().N == merged.N
        assert some.sizes.sum(1).tolist() == [90, 90]


@torch.no_grad()
def test_proportional_attention_equals_repeated_keys():
    """A key of size s has the weight of s copies."""
    config = ViTConfig(dim=32, depth=1, num_heads=4)
    torch.manual_seed(1)
    attention = ViT(config).blocks[0].attention
    x, sizes = torch.randn(1, 5, 32), torch.tensor([1, 3, 1, 2, 7])
    q, k, v = attention.project(x)
    expected = attention.attend(q, k.repeat_interleave(sizes, 2), v.repeat_interleave(sizes, 2), None)
    weight = sizes.float().log()[None]
    for how in ("channels", "bias"):
        torch.testing.assert_close(attention.attend(q, k, v, weight, how), expected, rtol=1e-5, atol=1e-5)


def test_two_channels_preserve_half_precision():
    """One bfloat16 channel rounds the log of a size by percents; the second holds the rounding error."""
    from fewtokens.encoders.transformer import _attend_with_channels

    torch.manual_seed(0)
    sizes = torch.randint(1, 1500, (1, 50)).float()
    q, k = torch.zeros(1, 1, 1, 64), torch.zeros(1, 1, 50, 64)
    v = torch.eye(50, 64)[None, None]
    probability = (sizes / sizes.sum())[0]
    # The probabilities are read from the values, computed in float32 on operands rounded to bfloat16.
    half = torch.bfloat16
    got = _attend_with_channels(q.to(half), k.to(half), v.to(half), sizes.log())[0, 0, 0, :50].float()
    assert float(((got - probability) / probability).abs().max()) < 0.01


@torch.no_grad()
def test_merging_inside_equals_a_slow_model():
    """The published algorithm in loops over frames, blocks and tokens, with an attention mask for the sizes."""
    torch.manual_seed(0)
    config = ViTConfig(dim=24, depth=3, num_heads=3, patch_size=4, image_size=(16, 20))
    vit = ViT(config).eval()
    for parameter in vit.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    video, r = torch.rand(1, 2, 3, 16, 20), 4
    tokens, _ = VitEncoder(vit)(video, block_methods=[TomeInEncoder(r=r)])
    encoder = VitEncoder(vit)
    for t in range(2):
        x = torch.cat([vit.prefix(1), encoder._embed(video[0, t : t + 1], Grid(1, 4, 5))], 1)[0]
        sizes = torch.ones(len(x))
        members = [[-1]] + [[cell] for cell in range(20)]
        for block in vit.blocks:
            q, k, v = block.attention.project(block.norm1(x[None]))
            logits = q @ k.transpose(2, 3) / 8**0.5 + sizes.log()
            x = x + block.attention.out((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))[0]
            keys = k.mean(1)[0]
            keys = keys / keys.norm(dim=1, keepdim=True)
            pairs = []
            for i in range(2, len(x), 2):  # the class token, at 0, never merges
                similarity, j = max((float(keys[i] @ keys[j]), -j) for j in range(1, len(x), 2))
                pairs.append((similarity, i, -j))
            gone = {}
            for _, i, j in sorted(pairs, reverse=True)[:r]:
                gone[i] = j
            total, mass = x * sizes[:, None], sizes.clone()
            for i, j in gone.items():
                total[j] += x[i] * sizes[i]
                mass[j] += sizes[i]
                members[j] = members[j] + members[i]
            order = [i for i in range(0, len(x), 2) if i not in gone] + list(range(1, len(x), 2))
            x, sizes, members = (total / mass[:, None])[order], mass[order], [members[i] for i in order]
            x = x + block.mlp(block.norm2(x))
        x = vit.norm_last(x)
        for n, cells in enumerate(members[1:], start=1):
            mine = tokens.assignment[0, t * 20 + cells[0]]
            assert tokens.sizes[0, mine] == len(cells)
            assert (tokens.assignment[0] == mine).nonzero().flatten().tolist() == sorted(t * 20 + c for c in cells)
            torch.testing.assert_close(tokens.features[0, mine], x[n], rtol=1e-4, atol=1e-4)


def test_gradients_reach_every_parameter():
    vit = ViT(
        ViTConfig(dim=16, depth=2, num_heads=2, patch_size=4, image_size=(12, 12), num_registers=1, layer_scale=True)
    )
    tokens, _ = VitEncoder(vit)(torch.rand(1, 2, 3, 16, 12), block_methods=[TomeInEncoder(r=2)])
    (tokens.features.square().sum() + tokens.prefix.square().sum()).backward()
    for name, parameter in vit.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name


class TestBadFolders:
    def folder(self, tmp_path):
        tiny("Dinov2").save_pretrained(tmp_path)
        return tmp_path

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda d: (d / "config.json").unlink(), "no config.json"),
            (lambda d: (d / "config.json").write_text("{"), "invalid JSON"),
            (lambda d: (d / "config.json").write_text("{}"), "no model_type"),
            (lambda d: (d / "model.safetensors").unlink(), r"no model\.safetensors"),
            (lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"), "pickled weights"),
            (
                lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:999]),
                "truncated",
            ),
        ],
    )
    def test_errors_name_the_problem(self, damage, message, tmp_path):
        folder = self.folder(tmp_path)
        damage(folder)
        with pytest.raises(ValueError, match=message) as caught:
            load_encoder(folder)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"num_hidden_layers": 5}, "missing: blocks.3"),
            ({"num_hidden_layers": 2}, "unexpected: blocks.2"),
            ({"hidden_size": 64}, "of a different shape"),
            ({"image_size": 20}, "of a different shape: positions"),
        ],
    )
    def test_a_config_that_does_not_fit(self, change, message, tmp_path):
        folder = self.folder(tmp_path)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            load_encoder(folder)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"hidden_size": "wide"}, "hidden_size must be a whole number"), ({"hidden_size": 10**12}, "not a vision"),
            ({"num_hidden_layers": 10**9}, "not a vision transformer"), ({"num_attention_heads": 0}, "not a vision"),
            ({"num_attention_heads": 5}, "multiple of num_heads"), ({"patch_size": 0}, "not a vision transformer"),
            ({"patch_size": [4, 8]}, "non-square"), ({"image_size": {"height": 16}}, "image_size must be"),
            ({"image_size": 10**9}, "must be 0 to 4096 pixels"), ({"layer_norm_eps": None}, "layer_norm_eps must be"),
            ({"hidden_act": ["gelu"]}, "hidden_act must be a string"),
            ({"model_type": 3}, "model_type must be a string"),
        ],
    )  # fmt: skip
    def test_config_values_are_checked(self, change, message, tmp_path):
        folder = self.folder(tmp_path)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message) as caught:
            load_encoder(folder)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"image_mean": [0.5, 0.5]}, "image_mean must be a list of 3"), ({"image_std": [0.5, 0, 0.5]}, "above 0"),
            ({"image_std": "half"}, "image_std must be a list of 3"), ([], "must be an object"),
        ],
    )  # fmt: skip
    def test_preprocessor_values_are_checked(self, config, message, tmp_path):
        folder = self.folder(tmp_path)
        (folder / "preprocessor_config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=message):
            load_encoder(folder)

    def test_another_family_is_refused(self, tmp_path):
        folder = self.folder(tmp_path)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "deit"}))
        with pytest.raises(ValueError, match=r"model_type must be one of vit, .*, got 'deit'"):
            matching_config(folder)

    def test_an_index_cannot_leave_its_folder(self, tmp_path):
        folder = self.folder(tmp_path)
        index = {"weight_map": {"a": "../../elsewhere.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match="outside its folder"):
            load_encoder(folder)

    def test_names_and_options(self, tmp_path):
        for name, options, message in (
            ("/no/such/folder", {}, "no such folder"),
            ("nobody/nothing", {}, "no such folder: nobody/nothing; .* the hub cannot be reached"),
            ("patches", {"device": "tpu"}, "device must be"),
            ("patches", {"device": "cuda:99"}, "no device"),
            ("patches", {"dtype": "int4"}, "dtype must be"),
            ("patches", {"batch": 0}, "batch must be"),
            ("patches", {"tubelets": 2}, "patches accepts patch_size, tubelet_size"),
            ("patches", {"patch_size": 0}, "must be 1 to 1024"),
        ):
            with pytest.raises(ValueError, match=message):
                load_encoder(name, **options)
        with pytest.raises(ValueError, match="accepts proportional"):
            load_encoder(self.folder(tmp_path), patch=3)


def test_frames_of_unequal_counts_are_chunked_by_count():
    from fewtokens.core.grid import Grid
    from fewtokens.encoders.vit_encoder import _batches_by_count

    counts = [196, 20, 0, 190, 22, 5, 3, 21, 0, 100] * 3
    chunks = _batches_by_count(counts, 4, Grid(1, 14, 14))
    assert sorted(number for chunk in chunks for number in chunk) == list(range(30))
    for chunk in chunks:
        widest = max(1, *(counts[number] for number in chunk))
        assert len(chunk) * widest <= 4 * 196
        assert widest <= 16 or min(counts[number] for number in chunk) >= widest * 2 / 3
    # Little padding: slots exceed tokens by less than a quarter.
    slots = sum(len(chunk) * max(1, *(counts[number] for number in chunk)) for chunk in chunks)
    assert slots < 1.25 * sum(counts)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_skipped_patches_in_any_chunking(batch):
    """Trimmed and reordered frames return the same features as in one padded pass."""
    torch.manual_seed(0)
    vit = ViT(ViTConfig(dim=16, depth=2, num_heads=2, patch_size=4, image_size=(16, 16))).eval()
    frames = torch.rand(2, 9, 3, 16, 16)
    frames[:, 3:6] = frames[:, 3:4]  # includes frames without tokens
    frames[0, 7, :, :8] = frames[0, 6, :, :8]
    (rlt,) = registry.build("rlt(tau=0.3)")
    reference, cues = VitEncoder(vit, batch=10_000)(frames, pixel_methods=[rlt], needs=("keys", "pixels"))
    tokens, returned = VitEncoder(vit, batch=batch)(frames, pixel_methods=[rlt], needs=("keys", "pixels"))
    assert len(set(tokens.count.tolist())) == 2
    torch.testing.assert_close(tokens.features, reference.features, rtol=1e-4, atol=1e-5)
    assert torch.equal(tokens.assignment, reference.assignment)
    torch.testing.assert_close(returned["keys"], cues["keys"], rtol=1e-4, atol=1e-5)
    assert torch.equal(returned["pixels"], cues["pixels"])


@pytest.mark.parametrize("activation", ["gelu", "gelu_pytorch_tanh"])
def test_activations_without_gradients(activation):
    """They may work in place, with the same result and without changing the input of the MLP."""
    mlp = Mlp(8, 16, activation=activation)
    x = torch.randn(2, 3, 8)
    before, expected = x.clone(), mlp(x)
    with torch.no_grad():
        assert torch.equal(mlp(x), expected)
    assert torch.equal(x, before)
    expected.sum().backward()
    assert mlp.fc1.weight.grad is not None


def test_positions_as_in_the_published_code_of_dino():
    """Places in the old grid are those of a new size that is 0.1 larger, as torch computes them from a scale factor."""
    positions = torch.randn(14, 14, 8, generator=torch.Generator().manual_seed(0))
    found = resize_positions(positions, (30, 55), offset=0.1)
    expected = torch.nn.functional.interpolate(
        positions.movedim(-1, 0)[None], scale_factor=(30.1 / 14, 55.1 / 14), mode="bicubic", align_corners=False
    )
    assert torch.equal(found, expected[0].movedim(0, -1))
    assert not torch.allclose(found, resize_positions(positions, (30, 55)))
    assert torch.equal(resize_positions(positions, (14, 14), offset=0.1), positions)
