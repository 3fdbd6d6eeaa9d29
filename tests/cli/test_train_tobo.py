"""Pre-training as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import Result
from PIL import Image

from fewtokens import Tokens
from fewtokens.video import synthetic, write
from tests.helpers.command import run

SMALL = ["--size", 16, "--batch", 4, "--workers", 0, "--device", "cpu", "--set", "patch_size=8", "--set", "dim=16"]
SMALL += [
    "--set",
    "num_heads=2",
    "--set",
    "depth=1",
    "--set",
    "visits=2",
    "--set",
    "decoder_depth=1",
    "--set",
    "shown=2",
]


def error_line(done: Result) -> str:
    return [line for line in done.stderr.splitlines() if line.strip()][-1]


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos") / "train" / "class"
    folder.mkdir(parents=True)
    for seed in range(3):
        write(folder / f"{seed}.mp4", synthetic("pan", frames=12, size=(32, 40), seed=seed).frames, 10)
    write(folder / "one.mp4", synthetic("pan", frames=1, size=(32, 40)).frames, 10)
    (folder / "broken.mp4").write_bytes(b"nothing")
    return folder.parent


def test_from_videos_to_an_encoder(videos, tmp_path):
    packed = json.loads(run("train", "frames", videos, "--out", tmp_path / "frames", "--size", 24, "--json").stdout)
    assert (packed["videos"], packed["frames"], len(packed["broken"])) == (4, 37, 1)
    words = ["train", "tobo", tmp_path / "frames", "--out", tmp_path / "run", *SMALL, "--steps", 5]
    done = run(*words)
    assert "4 videos to train on" in done.stderr
    assert "tobo_swapped" in done.stdout
    assert "(1 with fewer than two frames)" in " ".join(done.stderr.split())
    again = json.loads(run(*words, "--json").stdout)
    assert again["resumed_at"] == again["steps"] == 5
    assert "other settings (network)" in run(*words, "--set", "mask_ratio=0.5", code=2).stderr
    clip = write(tmp_path / "clip.mp4", synthetic("pan", frames=4, size=(32, 40)).frames, 10)
    run("tokenize", clip, "--encoder", tmp_path / "run" / "model", "--with", "tome(keep=0.5)", "--size", 32,
        "--out", tmp_path / "clip.safetensors")  # fmt: skip
    # A learned method is built for the encoder's dim.
    run("tokenize", clip, "--encoder", tmp_path / "run" / "model", "--with", "attentional_pool(4)", "--size", 32,
        "--out", tmp_path / "learned.safetensors")  # fmt: skip
    assert Tokens.load(tmp_path / "learned.safetensors").features.shape == (1, 4, 16)
    assert "costs can be counted for" in error_line(run("cost", tmp_path / "run" / "model", code=2))


def test_a_pretrained_encoder_is_probed(videos, tmp_path):
    run("train", "crop-mae", videos, "--out", tmp_path / "run", *SMALL, "--steps", 2)
    for channel, label in enumerate(("red", "green")):
        (tmp_path / "set" / label).mkdir(parents=True)
        for n in range(6):
            pixels = (torch.rand(16, 16, 3) * 90).byte()
            pixels[..., channel] += 150
            Image.fromarray(pixels.numpy()).save(tmp_path / "set" / label / f"{n}.png")
    words = ["--data", tmp_path / "set", "--size", 16, "--feature", "class", "--shots", 2, "--json"]
    scores = json.loads(run("eval", "fewshot", "--encoder", tmp_path / "run" / "model", *words).stdout)
    assert scores["top1"] >= 50
    refused = run("eval", "classify", tmp_path / "run" / "model", "--data", tmp_path / "set", code=2)
    assert "no trained network" in error_line(refused)


@pytest.mark.parametrize("verb", ["tobo", "mae", "siam-mae", "rsp", "crop-mae", "frames"])
def test_help_has_two_examples(verb):
    assert run("train", verb, "--help").stdout.count(f"fewtokens train {verb}") >= 1
    assert " ".join(run("train", verb, "--help").stdout.split()).count(f"train {verb}") >= 3


def test_a_dry_run_prints_settings_and_writes_nothing(videos, tmp_path):
    words = ["train", "rsp", videos, "--out", tmp_path / "run", "--preset", "rsp_vit_s16_k400", "--dry-run"]
    report = json.loads(run(*words, "--json", "--set", "kl_weight=0.1").stdout)
    assert report["parameters"]["encoder"] == 21_590_016
    assert report["network"]["kl_weight"] == 0.1
    assert report["settings"]["lr"] == pytest.approx(9e-4)
    assert "8 GPUs" in " ".join(run(*words).stdout.split())
    assert not (tmp_path / "run").exists()


def test_bad_input(videos, tmp_path):
    (tmp_path / "empty").mkdir()
    words = ["--out", tmp_path / "run"]
    assert "no video" in error_line(run("train", "tobo", tmp_path / "empty", *words, code=2))
    single = write(tmp_path / "single.mp4", synthetic("pan", frames=1, size=(32, 40)).frames, 10)
    assert "a pair requires two frames" in run("train", "tobo", single, *words, *SMALL, code=2).stderr
    for more, message in (
        (["--preset", "mae_tiny"], "--preset must be one of tobo_"), (["--set", "kl_weight=1"], "available:"),
        (["--steps", 3, "--epochs", 1], "not both"), (["--set", "distance=l1"], "distance"),
        (["--set", "precision=fp16", "--device", "cpu"], "fp16 requires a GPU"),
    ):  # fmt: skip
        assert message in run("train", "tobo", videos, *words, *more, code=2).stderr
    assert not (tmp_path / "run").exists()
