"""Training runs that are stopped, given other data, or trained longer, as a user meets them."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from safetensors import SafetensorError
from typer.testing import CliRunner

from fewtokens.cli import app, progress
from fewtokens.core import files
from fewtokens.video import synthetic, write
from tests.cli.test_command import COMMAND
from tests.llm.test_composed import ANSWERS, QUESTIONS, build, parts  # noqa: F401

SMALL = ("--size", 16, "--batch", 8, "--workers", 0, "--device", "cpu", "--epochs", 2)


def run(*words: object, code: int = 0) -> Result:
    """The command in this process, where nothing has to be imported again; never a traceback."""
    done = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "250"})
    assert done.exit_code == code, f"exit {done.exit_code}\n{done.output}\n{done.exception!r}"
    return done


def last(done: Result) -> str:
    return [line for line in done.stderr.splitlines() if line.strip()][-1]


def make_pictures(root: Path, seed: int) -> Path:
    """Uncompressed, so that two sets have the same names and sizes and only the pixels differ."""
    rng = np.random.default_rng(seed)
    for channel, label in enumerate(("red", "green", "blue")):
        (root / label).mkdir(parents=True)
        for n in range(6):
            pixels = rng.integers(0, 90, (20, 20, 3), dtype=np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(root / label / f"{n}.bmp")
    return root


@pytest.fixture
def two_sets(tmp_path) -> tuple[Path, Path]:
    return make_pictures(tmp_path / "A", 0), make_pictures(tmp_path / "B", 1)


def test_other_data_or_another_start_is_another_run(two_sets, tmp_path):
    a, b = two_sets
    words = ("train", "classify", "vit_nano8", "--out", tmp_path / "run", *SMALL)
    run(*words, "--data", a)
    model = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    refused = last(run(*words, "--data", b, code=2))
    for part in ("another data", f"{a} (", f"{b} (", "take another --out, or --fresh"):
        assert part in refused
    Image.new("RGB", (20, 20)).save(a / "red" / "0.bmp")
    assert "has changed since" in last(run(*words, "--data", a, code=2))
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == model
    run(*words, "--data", b, "--fresh")
    again = ("train", "classify", tmp_path / "run" / "model", "--data", b, "--out", tmp_path / "second", *SMALL)
    run(*again)
    run(*words, "--data", b, "--fresh", "--lr", 0.01)
    assert "another network" in last(run(*again, "--data", b, code=2)) or "network" in last(run(*again, code=2))


def test_it_is_trained_longer_and_says_how(two_sets, tmp_path):
    words = ("train", "classify", "vit_nano8", "--data", two_sets[0], "--out", tmp_path / "run", *SMALL)
    run(*words)
    done = run(*words, "--epochs", 4, "--json")
    assert "note:" in done.stderr
    assert "a run of 4 steps goes on from step 4 to 8" in done.stderr
    assert "cosine schedule of 8 steps" in done.stderr
    said = json.loads(done.stdout)
    assert (said["resumed_at"], said["steps"]) == (4, 8)
    assert "has done 8 steps, 2 are asked for" in last(run(*words, "--epochs", 1, code=2))


def test_a_signal_ends_in_one_line(two_sets, tmp_path):
    """A process of its own, with processes that read; they are interrupted with it, as by Ctrl-C in a terminal."""
    words = ["train", "classify", "vit_nano8", "--data", two_sets[0], "--out", tmp_path / "run", *SMALL, "--workers", 2]
    words += ["--epochs", 5000, "--set", "log_every=1", "--set", "eval_every=0", "--set", "save_every=100000"]
    process = subprocess.Popen(
        [str(COMMAND), *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if "stopped" in line]
    step = files.load_header(tmp_path / "run" / "state.safetensors")["step"]
    assert line == f"stopped at step {step}; the same command resumes"
    assert step >= 3
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "metrics.jsonl", "settings.json", "state.safetensors",
    }  # fmt: skip


def test_frames_of_another_size(tmp_path):
    write(tmp_path / "videos" / "a.mp4", synthetic("pan", frames=4, size=(64, 80)).frames, 10)
    words = ("train", "frames", tmp_path / "videos", "--out", tmp_path / "frames")
    run(*words, "--size", 32)
    refused = last(run(*words, "--size", 48, code=2))
    assert "32 pixels, 48 are asked for; take another --out, or --fresh" in refused
    assert json.loads(run(*words, "--size", 48, "--fresh", "--json").stdout)["frames"] == 4
    assert json.loads(run(*words, "--size", 48, "--json").stdout)["frames"] == 0


@pytest.fixture
def talks(tmp_path) -> Path:
    lines = []
    for number, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        write(tmp_path / "talks" / f"{number}.mp4", synthetic("digits", frames=6, size=(32, 32), seed=number).frames, 6)
        turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
        lines.append(json.dumps({"id": str(number), "video": f"{number}.mp4", "conversations": turns}))
    (tmp_path / "talks" / "train.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "talks" / "train.jsonl"


def test_a_video_language_model_is_drawn_with_the_seed_and_known_by_its_options(parts, talks, tmp_path):  # noqa: F811
    words = ("train", "video-llm", "--data", talks, "--encoder", parts / "vit", "--llm", parts / "llm", "--pool", 2,
             "--size", 32, "--set", "workers=0", "--device", "cpu", "--set", "steps=2", "--batch", 2)  # fmt: skip
    some = ("--frames", 4, "--with", "tome(keep=4)")
    for name in ("a", "b"):
        run(*words, *some, "--out", tmp_path / name)
    a, b = (files.load(tmp_path / name / "model" / "parts.safetensors", "video_llm")[0] for name in ("a", "b"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    for other, says in (
        (("--frames", 6, "--with", "tome(keep=4)"), "another frames: 4 there, 6 here"),
        (("--frames", 4, "--with", "tome(keep=5)"), "another --with: tome(keep=4) there, tome(keep=5) here"),
        ((*some, "--positions", "renumber"), "another --positions: keep there, renumber here"),
        ((*some, "--val", talks), "another test data: none there"),
    ):
        assert says in last(run(*words, *other, "--out", tmp_path / "a", code=2))
    assert not list((tmp_path / "a").rglob(".*"))


def test_a_disk_that_is_full_leaves_the_model_of_before(parts, tmp_path, monkeypatch):  # noqa: F811
    model = build(parts, "tome(keep=4)")
    model.save_pretrained(tmp_path / "model", trained={"size": 32})
    before = {path: path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()}

    def full(folder, **options):
        (Path(folder)).mkdir(parents=True)
        (Path(folder) / ".tmpAbC").write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(model.llm, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left") as error:
        model.save_pretrained(tmp_path / "model", trained={"size": 64})
    assert error.value.errno == errno.ENOSPC
    assert {path: path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()} == before


class TestProgressWithoutATerminal:
    def lines(self, monkeypatch, capsys, moments, total=1000, start=0) -> list[str]:
        clock = [0.0]
        monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
        with progress.progress("training", total) as advance:
            for done, now in moments:
                clock[0] = now
                advance(done + start, total, f"step {done + start}  loss 0.5")
        return capsys.readouterr().err.splitlines()

    def test_a_line_each_half_minute(self, monkeypatch, capsys):
        said = self.lines(monkeypatch, capsys, [(n, 3.0 * n) for n in range(1, 31)])
        assert said == [
            "step 10  loss 0.5  10 of 1000, 0.333 a second, 0:49:30 left",
            "step 20  loss 0.5  20 of 1000, 0.333 a second, 0:49:00 left",
            "step 30  loss 0.5  30 of 1000, 0.333 a second, 0:48:30 left",
        ]

    def test_a_line_each_twentieth(self, monkeypatch, capsys):
        said = self.lines(monkeypatch, capsys, [(n, 2.0 * n) for n in range(1, 41)], total=100)
        assert [line.split()[1] for line in said] == ["5", "10", "15", "20", "25", "30", "35", "40"]

    def test_quick_ones_say_nothing(self, monkeypatch, capsys):
        assert self.lines(monkeypatch, capsys, [(n, 0.01 * n) for n in range(1, 51)], total=50) == []

    def test_a_resumed_run_counts_its_own_steps(self, monkeypatch, capsys):
        (line,) = self.lines(monkeypatch, capsys, [(1, 100.0), (41, 140.0)], start=900)
        assert line == "step 941  loss 0.5  941 of 1000, 1 a second, 0:00:59 left"


def test_a_short_kill_campaign(tmp_path, monkeypatch):
    """A part of benchmarks/kills.py: real commands, killed at random times, end like undisturbed ones."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import kills

    cases = [case for case in kills.CASES if case.name == "train"]
    trials = kills.campaign(cases, 1, tmp_path, seed=3, log=lambda line: None)
    rows = kills.summarize(cases, trials)
    assert rows[0]["kills"] >= 1
    for row in trials:
        assert row["complete"] and not row["differing"] and not row["leftovers"], row
    assert rows[0]["bit-equal"] == str(rows[0]["reruns"])
    assert sys.modules["kills"] is kills
