"""models, cost, train and eval as a user runs them, on generated images and clips."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image

from fewtokens import networks as models
from fewtokens.video import write
from tests.cli.test_command import COMMAND, error_line
from tests.cli.test_command import quick as run
from tests.helpers.data import data_path

SMALL = ["--size", 16, "--batch", 8, "--workers", 0, "--device", "cpu"]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Three classes of colors, ten images per class."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for channel, label in enumerate(("red", "green", "blue")):
        (root / label).mkdir()
        for n in range(10):
            pixels = rng.integers(0, 90, (24, 30, 3), dtype=np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(root / label / f"{n}.png")
    return root


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    words = ["--data", images, "--out", out, *SMALL, "--epochs", 12, "--lr", 0.003, "--val-share", 0.3]
    done = run("train", "classify", "tokenlearner_vit_nano8_2at2", *words)
    assert "21 training items, 9 test items, 3 classes" in done.stderr
    assert "top1" in done.stdout
    return out


def test_models():
    listing = run("models").stdout
    assert "tokenlearner_vit_b16_8at6" in listing
    rows = json.loads(run("models", "--json").stdout)
    assert [row["name"] for row in rows] == models.names()
    assert "arXiv 2106.11297" in run("models", "tokenlearner_vit_s32_8at6").stdout
    report = json.loads(run("models", "tokenlearner_vivit_l16_16at12", "--json").stdout)
    assert round(report["parameters"] / 1e6) == 308
    assert "did you mean" in error_line(run("models", "vit_b_16", code=2))


def test_cost(trained):
    (row,) = json.loads(run("cost", "tokenlearner_vit_l16_16at12", "--size", 512, "--json").stdout)
    assert row["gflops_paper"] == pytest.approx(184.6, rel=1e-3)
    assert row["gmacs"] == pytest.approx(183.785, rel=1e-3)
    assert row["parameters"] == pytest.approx(305.33e6, rel=1e-3)
    text = run("cost", "vit_nano8", "tokenlearner_vit_nano8_8at2", "--size", 64, "--time", "--repeats", 2).stdout
    assert "ms" in text
    (row,) = json.loads(run("cost", trained / "model", "--json").stdout)
    assert row["input"] == "1x16x16"
    (row,) = json.loads(run("cost", "x2plus1d_m", "--size", 64, "--frames", 8, "--json").stdout)
    assert row["gflops_paper_video"] > 0
    assert "must be at least patch_size" in error_line(run("cost", "vit_b16", "--size", 8, code=2))
    assert "at least 1" in error_line(run("cost", "vit_nano8", "--time", "--repeats", 0, code=2))


def test_train_writes_all_files(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"settings.json", "state.safetensors", "metrics.jsonl", "model", "curves.png"} <= names
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["top1"] > 80
    assert models.read_meta(trained / "model")["labels"] == ["blue", "green", "red"]


def test_a_dry_run_prints_settings_and_writes_nothing(images, tmp_path):
    words = ["vit_nano8", "--data", images, "--out", tmp_path / "run", "--preset", "kinetics", "--dry-run"]
    text = run("train", "classify", *words).stdout
    assert "weight_decay" in text
    assert "32 TPU cores" in " ".join(text.split())
    report = json.loads(run("train", "classify", *words, "--set", "lr=0.5", "--json").stdout)
    assert report["settings"]["lr"] == 0.5
    assert not (tmp_path / "run").exists()


def test_eval_tests_on_the_held_out_items(trained, images):
    scores = models.read_meta(trained / "model")["trained"]["scores"]
    report = json.loads(run("eval", "classify", trained / "model", "--data", images, "--json").stdout)
    assert report["items"] == 9
    assert report["top1"] == pytest.approx(scores["top1"])
    views = run("eval", "classify", trained / "model", "--data", images, "--crops", 3, "--average", "probabilities")
    assert "crops=3" in views.stdout


def test_eval_of_a_folder_that_has_only_training_data(trained, images, tmp_path):
    (tmp_path / "train").symlink_to(images)
    report = json.loads(run("eval", "classify", trained / "model", "--data", tmp_path, "--json").stdout)
    assert report["items"] == 9


@pytest.mark.parametrize("task", ["fewshot", "linear", "knn"])
def test_probes(trained, images, task):
    words = ["--data", images, "--val-share", 0.3, "--json"]
    ours = json.loads(run("eval", task, "--encoder", trained / "model", *words).stdout)
    patches = json.loads(
        run("eval", task, "--encoder", "patches", "--size", 32, "--with", "tome(keep=0.5)", *words).stdout
    )
    for report in (ours, patches):
        assert report["top1"] > 60
    assert patches["protocol"]["spec"] == "tome(keep=0.5)"


def test_a_stopped_run_resumes(images, tmp_path):
    """Killed by a signal; after the second call the result equals that of an undisturbed run."""
    words = [
        "train", "classify", "vit_nano8", "--data", str(images), *map(str, SMALL), "--epochs", "6",
        "--set", "save_every=3", "--set", "log_every=1",
    ]  # fmt: skip
    run(*words, "--out", tmp_path / "whole")
    process = subprocess.Popen([COMMAND, *words, "--out", str(tmp_path / "parts")], stderr=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL)  # fmt: skip
    metrics = tmp_path / "parts" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 5):
        time.sleep(0.05)
    process.kill()
    process.wait()
    run(*words, "--out", tmp_path / "parts")
    a, b = (models.load(tmp_path / name / "model").state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    # Other settings in the same folder do not restart silently.
    assert "other settings (lr)" in error_line_last(run(*words, "--lr", 1, "--out", tmp_path / "parts", code=2))
    run(*words, "--lr", 0.01, "--out", tmp_path / "parts", "--fresh")


def error_line_last(done: Result) -> str:
    return [line for line in done.stderr.splitlines() if line.strip()][-1]


def test_videos(tmp_path):
    for level, label in ((40, "dark"), (200, "light")):
        (tmp_path / "set" / label).mkdir(parents=True)
        for n in range(4):
            frames = torch.full((10, 3, 24, 32), level + n).byte()
            write(tmp_path / "set" / label / f"{n}.mp4", frames, 10)
    (tmp_path / "set" / "dark" / "broken.mp4").write_bytes(b"not a video")
    (tmp_path / "set" / "dark" / "empty.mp4").write_bytes(b"")
    done = run(
        "train", "classify", "tokenlearner_vivit_nano8_2at2", "--data", tmp_path / "set", "--out", tmp_path / "run",
        *SMALL, "--epochs", 3, "--frames", 4, "--set", "stride=2", "--set", "clips=2", "--val-share", 0.25,
    )  # fmt: skip
    assert "could not be read" in done.stdout
    assert len((tmp_path / "run" / "broken.txt").read_text().splitlines()) <= 2
    tokens = tmp_path / "tokens.safetensors"
    clip = tmp_path / "set" / "dark" / "0.mp4"
    run("tokenize", clip, "--encoder", tmp_path / "run" / "model", "--with", "kmeans(keep=2)", "--frames", 4,
        "--out", tokens)  # fmt: skip
    assert tokens.exists()


def test_several_processes(images, tmp_path):
    """torchrun and accelerate launch, as the README says."""
    words = ["train", "classify", "vit_nano8", "--data", str(images), *map(str, SMALL), "--epochs", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for launcher in (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fewtokens"],
        ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "fewtokens"],
    ):
        out = tmp_path / launcher[1]
        done = subprocess.run(
            [sys.executable, *launcher, *words, "--out", str(out)], capture_output=True, text=True,
            env=environment, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("Network") == 1
        assert models.is_saved(out / "model")


class TestErrors:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["vit_nano9x", "--data", "."], "no model named"),
            (["vit_nano8", "--data", "nowhere"], "no such file"),
            (["vit_nano8", "--data", "."], "no labeled image"),
            (["vit_nano8", "--data", ".", "--preset", "moon"], "no recipe called 'moon'"),
            (["vit_nano8", "--data", ".", "--set", "lr"], "name=value"),
            (["vit_nano8", "--data", ".", "--set", "batch=-4"], "batch"),
        ],
    )
    def test_one_line(self, tmp_path, monkeypatch, words, message):
        monkeypatch.chdir(tmp_path)
        done = run("train", "classify", *words, "--out", tmp_path / "run", code=2)
        assert message in error_line(done)
        assert not (tmp_path / "run").exists()

    def test_a_class_that_only_the_test_set_has(self, images, tmp_path):
        (tmp_path / "val" / "violet").mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(tmp_path / "val" / "violet" / "0.png")
        words = ["--data", images, "--val", tmp_path / "val", "--out", tmp_path / "run"]
        assert "training classes: 'violet'" in error_line(run("train", "classify", "vit_nano8", *words, code=2))

    def test_lists_with_missing_files(self, images, tmp_path):
        lines = [f"{label}/{n}.png,{label}" for label in ("red", "green") for n in range(10)]
        (tmp_path / "list.csv").write_text("path,label\n" + "\n".join([*lines, "gone.png,red"]) + "\n")
        words = ["--data", tmp_path / "list.csv", "--out", tmp_path / "run", *SMALL, "--epochs", 1]
        done = run("train", "classify", "vit_nano8", *words, "--root", images)
        assert "1 missing: gone.png" in done.stderr
        assert "none of the 21 listed files" in error_line(run("train", "classify", "vit_nano8", *words, code=2))

    def test_checkpoints(self, trained, images, tmp_path):
        words = ["--data", images, "--json"]
        assert "no trained network" in error_line(run("eval", "classify", tmp_path, *words, code=2))
        models.load(trained / "model").save_pretrained(tmp_path / "m")
        assert "contains no labels" in error_line(run("eval", "classify", tmp_path / "m", *words, code=2))
        weights = tmp_path / "m" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:2000])
        assert "cut short" in error_line(run("eval", "knn", "--encoder", tmp_path / "m", *words, code=2))
        other = models.build("vit_nano8", image_size=(16, 16), num_classes=3)
        other.save_pretrained(tmp_path / "other")
        (tmp_path / "other" / "config.json").write_text((trained / "model" / "config.json").read_text())
        assert "does not fit this vit" in error_line(
            run("eval", "knn", "--encoder", tmp_path / "other", *words, code=2)
        )

    def test_tasks_and_options(self, trained, images):
        words = ["--data", images]
        assert "no verb 'guess'" in error_line(run("eval", "guess", *words, code=2))
        assert "--with has no effect on a trained network" in error_line(
            run("eval", "knn", "--encoder", trained / "model", "--with", "tome", *words, code=2)
        )
        assert "has no class token" in error_line(run("eval", "knn", "--feature", "class", *words, code=2))
        assert "the number of examples of class" in error_line(run("eval", "fewshot", "--shots", 50, *words, code=2))


@pytest.mark.data
def test_a_real_encoder_on_real_photographs(tmp_path):
    photographs = data_path("sign_digits") / "Dataset"
    lines = [f"{label}/{file.name},{label}" for label in "012" for file in sorted((photographs / label).iterdir())[:12]]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    words = ["--data", tmp_path / "list.csv", "--root", photographs, "--size", 98, "--val-share", 0.4, "--json"]
    report = json.loads(run("eval", "linear", "--encoder", data_path("weights/dinov2-small"), *words).stdout)
    assert report["top1"] > 50


@pytest.mark.data
def test_real_weights_initialize_a_video_network(tmp_path):
    """An image ViT in the layout of transformers initializes a ViViT."""
    from fewtokens.networks.inflate import initialize_from, matching_config

    source = data_path("weights/dinov2-small")
    config = matching_config(source, tubelet_size=2, num_frames=8, image_size=(98, 98), num_classes=5)
    model = models.VisionTransformer(config)
    report = initialize_from(model, source, positions="resize_tile")
    assert len([name for name in report["copied"] if name.startswith("blocks.")]) > 100
    from fewtokens.encoders import load_encoder

    image = torch.rand(1, 1, 3, 98, 98)
    clip = image.expand(1, 8, -1, -1, -1)
    tokens = load_encoder(str(source))(image)[0].features
    # On a static clip the first block receives each patch as in the image model.
    embedded = model.embed(model.prepare(clip))[0, 0].flatten(0, 1)
    encoder = load_encoder(str(source)).vit
    mean, std = (torch.tensor(v)[:, None, None] for v in (config.mean, config.std))
    expected = encoder.embed((image[0] - mean) / std)[0].flatten(0, 1)
    assert tokens.shape[2] == embedded.shape[1]
    # The video network resizes positions bilinearly, the encoder bicubically, so they are only similar.
    assert torch.nn.functional.cosine_similarity(embedded, expected, dim=1).mean() > 0.95


@pytest.mark.data
def test_training_starts_from_real_weights(tmp_path, images):
    words = ["--data", images, "--out", tmp_path, "--size", 28, "--frames", 2, "--batch", 9, "--workers", 0]
    done = run(
        "train", "classify", "tokenlearner_vivit_s14_2at10", *words, "--set", "steps=1", "--device", "cpu", "--init",
        data_path("weights/dinov2-small"),
    )  # fmt: skip
    assert "top1" in done.stdout
