"""Stages run in order, methods receive the cues they need, and pipelines are saved and loaded."""

from __future__ import annotations

import itertools
import json
import re

import pytest
import torch
from torch import Tensor

from fewtokens.core import files, registry
from fewtokens.core.encoder import Encoder
from fewtokens.core.grid import Grid
from fewtokens.core.method import Reducer, Resampled, Resampler, save_weights
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.plan import Plan
from fewtokens.core.tokens import Tokens
from fewtokens.encoders import Patches
from tests.helpers.clips import assert_same_tokens, clip, cues


class FakeEncoder(Encoder):
    """An encoder whose features are the pixels of 4x4 patches; records the arguments of its last call."""

    id = "fake"
    cues = ("pixels",)
    dim = 48

    def __init__(self, skips: bool = True, exposes_blocks: bool = False, fingerprint: str | None = None) -> None:
        super().__init__()
        self.skips_dropped_patches, self.exposes_blocks, self.fingerprint, self.call = (
            skips,
            exposes_blocks,
            fingerprint,
            {},
        )

    def grid(self, frames, height, width, times=None):
        return Grid(frames, height // 4, width // 4, times)

    def forward(
        self, frames, times=None, *, needs=(), pixel_methods=(), block_methods=()
    ) -> tuple[Tokens, dict[str, Tensor]]:
        self.call = {"needs": list(needs), "pixel_methods": list(pixel_methods), "block_methods": list(block_methods)}
        B, T, _, H, W = frames.shape
        x = frames.reshape(B, T, 3, H // 4, 4, W // 4, 4).permute(0, 1, 3, 5, 4, 6, 2).float() / 255
        pixels = x.reshape(B, -1, 1, 48)
        tokens = Tokens.from_cells(pixels.reshape(B, -1, 48), self.grid(T, H, W, times))
        for method in pixel_methods:
            tokens = method(tokens, pixels=pixels)
        return tokens, dict.fromkeys(needs, pixels)


def frames(T=5):
    torch.manual_seed(0)
    video = torch.randint(0, 255, (1, 1, 3, 16, 16), dtype=torch.uint8).expand(2, T, -1, -1, -1).clone()
    video[:, 2:, :, :8] = 200
    return video


def test_frames_to_tokens():
    encoder = FakeEncoder()
    out = Pipeline("rlt | tome(0.1)", encoder)(frames(), torch.arange(5) / 2)
    assert out.count.tolist() == [8, 8]
    assert len(encoder.call["pixel_methods"]) == 1
    assert out.grid.times.tolist() == [0, 0.5, 1, 1.5, 2]
    assert out.meta["spec"] == "rlt(tau=0.1) | tome(keep=0.1, window=128)"
    assert out.meta["encoder"]["id"] == "fake"


def test_one_video_without_a_batch_axis():
    assert Pipeline("uniform(7)", FakeEncoder())(frames()[0]).count.tolist() == [7]


def test_no_methods_keep_everything():
    assert Pipeline("", FakeEncoder())(frames()).N == 80


def test_a_pixels_method_after_an_encoder_that_cannot_skip_patches():
    encoder = FakeEncoder(skips=False)
    out = Pipeline("rlt", encoder)(frames())
    assert encoder.call == {"needs": ["pixels"], "pixel_methods": [], "block_methods": []}
    assert_same_tokens(out, Pipeline("rlt", FakeEncoder())(frames()))


def test_cues_follow_the_tokens():
    """The second method receives the pixels of the tokens that the first one kept."""
    tokens = clip(T=6)
    pixels = torch.rand(2, 180, 2, 12)
    received = {}

    class RecordingDtd(type(registry.build("dtd(mode='pixel')")[0])):
        def plan(self, tokens, *, pixels):
            received["pixels"] = pixels
            return super().plan(tokens, pixels=pixels)

    first = registry.build("random(0.5)")[0]
    Pipeline([first, RecordingDtd(mode="pixel")])(tokens, pixels=pixels)
    kept = first(tokens)
    expected = pixels.gather(1, kept.cell[..., None, None].expand(-1, -1, 2, 12))
    torch.testing.assert_close(received["pixels"], expected)


class NoArguments(Reducer):
    """A reducer without arguments."""

    def __init__(self) -> None:
        super().__init__()


class Soft(Resampler):
    """A resampler with fixed random weights; each new token is a mixture of all tokens."""

    def resample(self, tokens: Tokens) -> Resampled:
        weights = torch.rand(tokens.B, 7, tokens.N, generator=torch.Generator().manual_seed(tokens.N))
        return Resampled(None, weights / weights.sum(2, keepdim=True), torch.full((tokens.B,), 7))


class Pairs(NoArguments):
    """Merges pairs of adjacent tokens; an unpaired last token is dropped."""

    def plan(self, tokens: Tokens) -> Plan:
        label = (torch.arange(tokens.N) // 2).masked_fill(torch.arange(tokens.N) >= tokens.N // 2 * 2, -1)
        return Plan(torch.full((tokens.B,), tokens.N // 2), tokens.N // 2, label.expand(tokens.B, -1))


class CueRecorder(NoArguments):
    """Records the cues that it receives, and keeps all tokens."""

    @property
    def needs(self) -> tuple[str, ...]:
        return ("attention", "pixels")

    def plan(self, tokens: Tokens, **cues: Tensor) -> Plan:
        self.received = cues
        return Plan.identity(tokens)


@pytest.mark.parametrize(
    "chain", [[Soft], [Pairs, Soft], [Soft, Pairs], [Pairs, Soft, Pairs], [Soft, Soft], [Pairs, Pairs]]
)
def test_cues_are_right_after_any_chain(chain):
    """Compares with the same steps applied to the cues: soft weights unchanged, means weighted by token size."""
    tokens = clip(T=3, H=2, W=3)
    attention, pixels = torch.rand(2, 18), torch.rand(2, 18, 2, 12)
    recorder, steps = CueRecorder(), [step() for step in chain]
    Pipeline([*steps, recorder])(tokens, attention=attention, pixels=pixels)
    expected = torch.cat([attention[..., None], pixels.flatten(2)], 2)
    for step in steps:
        plan = step.resample(tokens).plan if isinstance(step, Resampler) else step.plan(tokens)
        after = step(tokens)
        if plan.weights is not None:
            expected = torch.stack([plan.weights[b] @ expected[b] for b in range(2)])
        else:
            rows = torch.zeros(2, plan.num_slots, 25)
            for b, m in itertools.product(range(2), range(plan.num_slots)):
                members = plan.dest[b] == m
                rows[b, m] = (expected[b] * tokens.sizes[b, :, None])[members].sum(0) / tokens.sizes[b, members].sum()
            expected = rows
        tokens = after
    torch.testing.assert_close(recorder.received["attention"], expected[..., 0])
    torch.testing.assert_close(recorder.received["pixels"].flatten(2), expected[..., 1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("chain", [[Pairs], [Pairs, Pairs], [Pairs, Soft]])
def test_cues_of_merged_tokens_are_weighted_by_size(chain, dtype):
    """Input tokens stand for 1 to 6 cells each, in a padded batch."""
    labels = torch.tensor([[0] * 6 + [1] * 3 + [2] * 2 + [3, 4, 5, 6] + [-1] * 3, [0, 1, 1, 2, 2, 2] + [3] * 12])
    tokens = clip(T=3, H=2, W=3)
    tokens = tokens.apply(Plan.group(labels, tokens))
    assert tokens.count.tolist() == [7, 4]
    pixels = torch.rand(2, 7, 2, 12).masked_fill(~tokens.mask[..., None, None], 0)
    recorder, steps = CueRecorder(), [step() for step in chain]
    Pipeline([*steps, recorder])(tokens, attention=pixels[..., 0, 0], pixels=pixels.to(dtype))
    out = Pipeline(steps)(tokens)
    for b, m in itertools.product(range(2), range(out.N)):
        weight = torch.zeros(7)  # of each input token
        for n in range(int(tokens.count[b])):
            cells = (tokens.assignment[b] == n).nonzero()[:, 0]
            if out.attribution is None:
                weight[n] = float((out.assignment[b, cells] == m).sum())
            else:
                weight[n] = float(out.attribution[b, m, cells].sum())
        expected = (weight[:, None, None] * pixels[b]).sum(0) / weight.sum().clamp(min=1e-12)
        torch.testing.assert_close(recorder.received["pixels"][b, m].float(), expected, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(recorder.received["attention"][b, m], expected[0, 0])


def test_a_cue_of_the_caller_overrides_that_of_the_encoder():
    encoder, recorder, attention = FakeEncoder(), CueRecorder(), torch.rand(2, 80)
    encoder.cues = ("pixels", "attention")
    Pipeline([recorder], encoder)(frames(), attention=attention)
    assert torch.equal(recorder.received["attention"], attention)
    assert recorder.received["pixels"].shape == (2, 80, 1, 48)


@pytest.mark.parametrize("spec", [name for name in registry.names() if issubclass(registry.get(name), Resampler)])
def test_cues_after_a_resampler_are_weighted_by_attribution(spec):
    tokens, recorder = clip(T=3, H=5, W=6), CueRecorder()
    torch.manual_seed(0)
    (method,) = registry.build(f"{spec}(side=5)" if spec == "vqtoken" else spec, dim=24)
    if method.name == "vqtoken":
        tokens = clip(T=3, H=5, W=5)
    inputs = cues(tokens)
    Pipeline([method.eval(), recorder])(tokens, **inputs)
    out = method(tokens, **{name: inputs[name] for name in method.needs})
    for b, m in itertools.product(range(2), range(0, out.N, 5)):
        weight = out.cell_weights()[b, m].detach().clamp(min=0)
        expected = float((weight * inputs["attention"][b]).sum() / weight.sum()) if m < int(out.count[b]) else 0.0
        assert float(recorder.received["attention"][b, m].detach()) == pytest.approx(expected, abs=1e-5)


def test_cues_of_resampled_tokens_cannot_be_pooled_later():
    resampled = Soft()(clip(T=3, H=2, W=3))
    attention, pixels = torch.rand(2, 7), torch.rand(2, 7, 2, 12)
    recorder = CueRecorder()
    Pipeline([recorder])(resampled, attention=attention, pixels=pixels)
    assert torch.equal(recorder.received["attention"], attention)
    with pytest.raises(ValueError, match="run the full chain in one call"):
        Pipeline([Pairs(), recorder])(resampled, attention=attention, pixels=pixels)


def test_planned_count_of_a_chain():
    grid = Grid(8, 4, 4)
    assert Pipeline("evs(0.5) | tome(0.25)").planned_count(grid) == 32
    assert Pipeline("tome(0.25) | random(0.5)").planned_count(grid) == 32
    assert Pipeline("rlt | tome(0.25)").planned_count(grid) is None
    assert Pipeline("").planned_count(grid) == 128


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Pipeline("tome(0.5) | rlt"), "order pixels, encoder, tokens"),
        (lambda: Pipeline("tome_in_encoder(r=2)", FakeEncoder()), "does not support"),
        (lambda: Pipeline("uniform")(frames()), "require an encoder"),
        (lambda: Pipeline("rlt")(clip()), "requires the cue pixels"),
        (lambda: Pipeline("tome_in_encoder(r=2)")(clip()), "pass frames"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_cue_that_the_encoder_does_not_provide():
    encoder = FakeEncoder()
    encoder.cues = ()
    with pytest.raises(ValueError, match="dtd requires the cue pixels"):
        Pipeline("dtd(mode='pixel')", encoder)


class TestSaving:
    def test_round_trip(self, tmp_path):
        pipeline = Pipeline("rlt(tau=0.3) | kmeans(keep=5, seed=3)", FakeEncoder(fingerprint="abc"))
        again = Pipeline.from_pretrained(
            pipeline.save_pretrained(tmp_path / "p"), encoder=FakeEncoder(fingerprint="abc")
        )
        assert again.spec == pipeline.spec
        assert_same_tokens(again(frames()), pipeline(frames()), 0)

    @pytest.mark.parametrize(
        "spec", ["tokenlearner('4/frame', dim=8{})", "vqtoken(4, dim=8, side=2{})", "videoitg(2, dim=3{})"]
    )
    def test_the_files_of_parameters_are_not_needed(self, tmp_path, spec):
        """A saved pipeline has the parameters of its methods, those of a frame selector too."""
        pipeline = Pipeline(spec.format(""))
        method = pipeline.selector or pipeline.methods[0]
        save_weights(method, tmp_path / "a.safetensors")
        checkpoint = str(tmp_path / "a.safetensors")
        torch.manual_seed(1)
        Pipeline(spec.format(f", checkpoint={checkpoint!r}")).save_pretrained(tmp_path / "p")
        (tmp_path / "a.safetensors").unlink()
        again = Pipeline.from_pretrained(tmp_path / "p")
        loaded = again.selector or again.methods[0]
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), method.parameters(), strict=True))

    def test_different_weights_are_rejected(self, tmp_path):
        Pipeline("uniform", FakeEncoder(fingerprint="abc")).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="different weights"):
            Pipeline.from_pretrained(tmp_path, encoder=FakeEncoder(fingerprint="xyz"))

    def test_errors(self, tmp_path):
        with pytest.raises(ValueError, match=r"no config\.json"):
            Pipeline.from_pretrained(tmp_path)
        Pipeline("uniform").save_pretrained(tmp_path)
        config = tmp_path / "config.json"
        for text in ("{", json.dumps({"spec": "uniform"}), "[]"):
            config.write_text(text)
            with pytest.raises(ValueError, match="not the config"):
                Pipeline.from_pretrained(tmp_path)
        config.write_text(json.dumps({"spec": "unform", "encoder": None}))
        with pytest.raises(ValueError, match="did you mean uniform"):
            Pipeline.from_pretrained(tmp_path)
        config.write_text(json.dumps({"spec": "uniform", "encoder": None}))
        (tmp_path / "methods.safetensors").write_bytes(b"cut")
        with pytest.raises(ValueError, match="invalid safetensors"):
            Pipeline.from_pretrained(tmp_path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"spec": None}, "spec must be a string"),
            ({"encoder": "patches"}, "encoder must be an object"),
            ({"encoder": {"id": "patches"}}, "lacks encoder.fingerprint"),
            ({"encoder": {"id": 5, "fingerprint": None}}, "encoder.id must be a string"),
            ({"encoder": {"id": "patches", "fingerprint": 5}}, "encoder.fingerprint must be a string"),
            ({"encoder": {"id": "patches", "fingerprint": None, "options": []}}, "encoder.options must be an object"),
            (
                {"encoder": {"id": "patches", "fingerprint": None, "options": {"patch_size": "16"}}},
                "patch_size must be a whole",
            ),
            (
                {"encoder": {"id": "patches", "fingerprint": None, "options": {"patch_size": 10**30}}},
                "patch_size and tubelet_size must",
            ),
            ({"encoder": {"id": "patches", "fingerprint": None, "options": {"device": 3}}}, "device must be a string"),
            ({"encoder": {"id": "patches", "fingerprint": None, "options": {"color": 3}}}, "got color"),
            ({"spec": "rlt(tau='x')"}, "tau must be"),
            ({"spec": "(" * 300}, "cannot read the spec"),
        ],
    )
    def test_an_invalid_config_is_a_one_line_error(self, tmp_path, change, message):
        config = Pipeline("uniform", Patches(4)).save_pretrained(tmp_path) / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | change))
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            Pipeline.from_pretrained(tmp_path)
        assert "\n" not in str(caught.value)

    def test_parameters_that_do_not_fit(self, tmp_path):
        Pipeline("tokenlearner('4/frame', dim=48)").save_pretrained(tmp_path)
        files.save(tmp_path / "methods.safetensors", "pipeline", {"0.norm.weight": torch.zeros(3)}, {})
        with pytest.raises(ValueError, match=r"do not fit .* missing") as caught:
            Pipeline.from_pretrained(tmp_path)
        assert "\n" not in str(caught.value)
