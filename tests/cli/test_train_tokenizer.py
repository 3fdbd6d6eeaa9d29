"""Training a tokenizer as a user runs it, and what it refuses."""

from __future__ import annotations

import json

import pytest

from fewtokens.tokenizers import load_tokenizer
from fewtokens.video import synthetic, write
from tests.helpers.command import run

SPEC = "tubelet(24, stride=(2, 8, 8)) | {} > tubelet(stride=(2, 8, 8))"
SMALL = [
    "--set",
    "size=16",
    "--frames",
    4,
    "--batch",
    2,
    "--workers",
    0,
    "--device",
    "cpu",
    "--set",
    "shown=2",
    "--steps",
    2,
]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(2):
        write(folder / f"{seed}.mp4", synthetic("pan", frames=6, size=(32, 40), seed=seed).frames, 10)
    return folder


def test_train_then_start_from_the_result(videos, tmp_path):
    words = ["train", "tokenizer", videos, *SMALL]
    values = json.loads(
        run(*words, "--tokenizer", SPEC.format("fsq"), "--out", tmp_path / "run", "--eval", videos, "--json").stdout
    )
    assert values["steps"] == 2
    assert {"psnr", "psnr_mean_frame", "usage"} == values["scores"].keys()
    assert load_tokenizer(tmp_path / "run/tokenizer", device="cpu").spec.startswith("tubelet(width=24")
    swap = run(
        *words, "--tokenizer", SPEC.format("bsq"), "--init", tmp_path / "run/tokenizer", "--out", tmp_path / "next"
    )
    assert "5 of 8 tensors loaded" in " ".join(swap.stderr.split())


def test_a_dry_run_prints_settings_and_writes_nothing(videos, tmp_path):
    done = run(
        "train", "tokenizer", videos, *SMALL, "--tokenizer", SPEC.format("fsq"), "--out", tmp_path / "x", "--dry-run"
    )
    assert "8 tokens, 80 bits" in " ".join(done.stdout.split())
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tokenizer", "vidtok"], "no tokenizer named 'vidtok'"),
        (["--tokenizer", SPEC.format("fsq"), "--size", 20], "a height that is a multiple of 8"),
        (["--tokenizer", SPEC.format("fsq"), "--set", "pixel=l3"], "pixel must be one of l1"),
        (["--tokenizer", SPEC.format("fsq"), "--set", "gan_weight=1"], "at least 32 pixels"),
        (["--tokenizer", SPEC.format("fsq"), "--epochs", 1], "--steps or --epochs, not both"),
        (["--tokenizer", SPEC.format("fsq"), "--set", "rates=encoder=0"], "unknown parts in rates: encoder"),
        (["--tokenizer", SPEC.format("fsq"), "--init", "nowhere/x/y"], "no such folder"),
    ],
)
def test_refusals(videos, tmp_path, words, message):
    done = run("train", "tokenizer", videos, *SMALL, "--out", tmp_path / "run", *words, code=2)
    assert message in " ".join(done.stderr.split())
