"""Pre-training runs: rates, resuming, accumulation, and that the bottleneck carries the source."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fewtokens.core import files
from fewtokens.data.footage import Footage, find_footage
from fewtokens.data.packed import pack_frames, write_frames
from fewtokens.data.pairs import PairData, Pairing, collate_pairs
from fewtokens.encoders import load_encoder
from fewtokens.networks.pretrained import PRETRAINING
from fewtokens.train.pretraining import FixedBatchEvaluator, MaskedPairs, build_pretraining, pretrain
from fewtokens.train.pretraining_presets import OBJECTIVES, accepted_settings, make_pretraining, preset_names
from tests.helpers.data import data_path
from tests.video.makers import moving_frames

SMALL = {
    "size": 32, "dim": 32, "depth": 2, "num_heads": 2, "decoder_dim": 16, "decoder_depth": 2, "decoder_num_heads": 2,
    "steps": 6, "batch": 6, "visits": 4, "workers": 0, "log_every": 2, "save_every": 3, "eval_every": 0.0, "shown": 3,
    "max_gap": 4, "warmup": 1.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def footage(tmp_path_factory) -> list[Footage]:
    folder = tmp_path_factory.mktemp("frames")
    for seed in range(5):
        pixels = torch.from_numpy(np.ascontiguousarray(moving_frames(8, 48, 40, seed)))
        write_frames(folder / f"{seed}.npy", [pixels.permute(0, 3, 1, 2)])
    return list(find_footage(folder).items)


def recipe(objective: str = "tobo", **changes):
    return make_pretraining(f"{objective}_tiny", **(SMALL | changes))


class Stop(Exception):
    pass


def stop_at(step: int):
    def progress(done: int, total: int, numbers: dict) -> None:
        if done == step:
            raise Stop

    return progress


def test_learning_rates_of_the_published_run():
    published = make_pretraining("tobo_vit_s16_k400")
    assert published.lr == pytest.approx(9e-4)
    per_epoch = 156
    total = 200 * per_epoch
    assert published.total(per_epoch * 1536) == total
    assert published.lr_at(0, total) == 0
    assert published.lr_at(10 * per_epoch, total) == pytest.approx(4.5e-4)
    assert published.lr_at(20 * per_epoch, total) == pytest.approx(9e-4)
    assert published.lr_at(110 * per_epoch, total) == pytest.approx(4.5e-4)
    assert published.lr_at(total, total) == pytest.approx(0, abs=1e-12)
    assert (published.pairing.min_gap, published.pairing.max_gap, published.repeats) == (1, 96, 2)
    assert make_pretraining("tobo_vit_s16_k400", batch=256).lr == pytest.approx(1.5e-4)
    assert make_pretraining("tobo_vit_s16_k400", batch=256, lr=1e-3).lr == 1e-3
    assert make_pretraining("crop_mae_vit_s16_k400").lr == pytest.approx(8e-4)


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_complete(name):
    preset = make_pretraining(name)
    assert preset.note
    config = preset.config()
    assert config.image_size == (preset.size, preset.size)
    assert preset.pairing.frames == PRETRAINING[preset.objective].frames
    changed = make_pretraining(name, mask_ratio=0.5, seed=7, size=64)
    assert (changed.config().mask_ratio, changed.seed, changed.config().image_size) == (0.5, 7, (64, 64))


def test_bad_recipes():
    for preset, changes, message in (
        ("tobo", {}, "no preset"), ("tobo_vit_h14_k400", {}, "no preset"), ("tobo_tiny", {"kl_weight": 1}, "kl_weight"),
        ("mae_tiny", {"size": 60}, "multiples of patch_size"), ("tobo_tiny", {"shown": 1}, "shown"),
        ("tobo_tiny", {"min_gap": 90}, "gaps"), ("tobo_tiny", {"objective": "mae"}, "no setting objective"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            make_pretraining(preset, **changes)
    assert {"mask_ratio", "auxiliary_weight", "lr", "area"} <= accepted_settings("tobo").keys()
    assert type(accepted_settings("tobo")["epochs"]) is float


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_run(footage, tmp_path, objective):
    report = pretrain(footage, recipe(objective, batch=7), tmp_path, device="cpu")
    assert report.steps == 6
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    paths = {"tobo": ("tobo", "siam"), "rsp": ("rsp", "mae"), "mae": ("mae",)}.get(objective, ("siam",))
    assert set(paths) <= lines[0].keys()
    assert {f"{path}_own" for path in paths} <= lines[-1].keys()
    assert {f"{path}_swapped" for path in paths if path != "mae"} == {n for n in lines[-1] if n.endswith("_swapped")}
    assert {"index.html", "reconstructions.png", "curves.png", "model"} <= {path.name for path in tmp_path.iterdir()}
    page = (tmp_path / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page
    tokens, _ = load_encoder(tmp_path / "model")(torch.rand(1, 2, 3, 32, 32))
    assert tokens.prefix.shape == (1, 2, 32)


@pytest.mark.parametrize("objective", ["tobo", "rsp"])
def test_a_resumed_run_is_bit_equal(footage, tmp_path, objective):
    config = recipe(objective, accumulate=2, precision="bf16")
    pretrain(footage, config, tmp_path / "whole", device="cpu")
    with pytest.raises(Stop):
        pretrain(footage, config, tmp_path / "parts", device="cpu", progress=stop_at(5))
    report = pretrain(footage, config, tmp_path / "parts", device="cpu")
    assert report.resumed_at == 3
    a, b = (files.load(tmp_path / name / "state.safetensors", "run")[0] for name in ("whole", "parts"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    same = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    assert same[0] == same[1]
    # A different network is another run.
    with pytest.raises(ValueError, match=r"other settings \(network\)"):
        pretrain(footage, recipe(objective, accumulate=2, precision="bf16", mask_ratio=0.5), tmp_path / "parts")


def test_accumulated_gradients_are_those_of_the_full_batch(footage, tmp_path):
    """Masks depend on the sample, so a batch in parts is the same batch."""
    states = []
    for accumulate in (1, 3):
        config = recipe(accumulate=accumulate, steps=2, optimizer="sgd", lr=0.1)
        model = build_pretraining(config)
        pretrain(footage, config, tmp_path / str(accumulate), model=model, device="cpu")
        states.append(model.state_dict())
    for name in states[0]:
        torch.testing.assert_close(states[0][name], states[1][name], rtol=1e-4, atol=1e-6)


def test_only_positions_are_not_trained(footage, tmp_path):
    config = recipe(steps=3, lr=1e-2)
    model = build_pretraining(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pretrain(footage, config, tmp_path, model=model, device="cpu")
    after = model.state_dict()
    unchanged = {name for name in before if torch.equal(before[name], after[name])}
    assert unchanged == {"encoder.positions", "encoder.class_position"}


def test_broken_and_short_videos_are_skipped_and_reported(footage, tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"nothing")
    write_frames(tmp_path / "single.npy", [torch.zeros(1, 3, 40, 48).byte()])
    items = [*footage, Footage(str(tmp_path / "x.mp4")), Footage(str(tmp_path / "single.npy"))]
    report = pretrain(items, recipe(), tmp_path / "run", device="cpu")
    messages = (tmp_path / "run" / "broken.txt").read_text().splitlines()
    assert sorted(messages) == sorted(report.broken)
    assert [("a pair requires two frames" in line, "x.mp4" in line) for line in sorted(messages)] == [
        (True, False),
        (False, True),
    ]
    with pytest.raises(ValueError, match="none of 2 videos can be used"):
        pretrain(items[5:], recipe(), tmp_path / "none", device="cpu")
    assert not (tmp_path / "none").exists()


def test_four_real_pairs_are_learned_through_the_bottleneck(tmp_path):
    """Both losses fall, and the source of another video makes the bottleneck's worse."""
    clips = data_path("clips")
    names = ("bedroom.mp4", "mmaction_demo.mp4", "sample_demo_1.mp4", "vtest.avi")
    packed = pack_frames([Footage(str(clips / name), end=1.0) for name in names], tmp_path, short=40)
    items = [Footage(str(path)) for path in packed.files]
    config = recipe(dim=64, depth=3, decoder_dim=64, decoder_num_heads=4, patch_size=8)
    model = build_pretraining(config)
    data = PairData(items, Pairing(size=32, max_gap=8, area=(1.0, 1.0), flip=0.0))
    batch = collate_pairs([data[n] for n in range(4)])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 2e-3)
    objective = MaskedPairs(model.config.patches)
    first: dict[str, float] = {}
    for _ in range(250):
        loss, losses = objective(model, batch, torch.Generator())
        first = first or {name: float(value.detach()) for name, value in losses.items()}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    last = {name: float(value.detach()) for name, value in losses.items()}
    assert last["tobo"] < 0.3 * first["tobo"]
    assert last["siam"] < 0.3 * first["siam"]
    evaluate = FixedBatchEvaluator(data, 4, tmp_path)
    evaluate.frames, evaluate.seeds = batch["frames"], batch["seeds"]
    with torch.no_grad():
        scores = evaluate(model.eval())
    assert scores["tobo_own"] == pytest.approx(last["tobo"], rel=0.3)
    assert scores["tobo_swapped"] > 1.5 * scores["tobo_own"]
