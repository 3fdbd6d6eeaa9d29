"""Training runs that are stopped, resumed with other data, or continued, as a user runs them."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

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


def small(epochs=2, workers=0):
    """Options of a run of seconds."""
    return ("--size", 16, "--batch", 8, "--workers", workers, "--device", "cpu", "--epochs", epochs)


def run(*words: object, code: int = 0) -> Result:
    """Runs the command in this process, without a new import, and checks the exit code."""
    done = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "250"})
    assert done.exit_code == code, f"exit {done.exit_code}\n{done.output}\n{done.exception!r}"
    return done


def last(done: Result) -> str:
    return [line for line in done.stderr.splitlines() if line.strip()][-1]


def make_images(root: Path, seed: int) -> Path:
    """Writes uncompressed images, so that two sets have equal names and file sizes and only the pixels differ."""
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
    return make_images(tmp_path / "A", 0), make_images(tmp_path / "B", 1)


def test_other_data_or_initial_weights_are_another_run(two_sets, tmp_path):
    a, b = two_sets
    words = ("train", "classify", "vit_nano8", "--out", tmp_path / "run", *small())
    run(*words, "--data", a)
    model = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    refused = last(run(*words, "--data", b, code=2))
    for part in ("data", f"{a} (", f"{b} (", "use another --out, or --fresh"):
        assert part in refused
    Image.new("RGB", (20, 20)).save(a / "red" / "0.bmp")
    assert "has changed since" in last(run(*words, "--data", a, code=2))
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == model
    run(*words, "--data", b, "--fresh")
    again = ("train", "classify", tmp_path / "run" / "model", "--data", b, "--out", tmp_path / "second", *small())
    run(*again)
    run(*words, "--data", b, "--fresh", "--lr", 0.01)
    assert "network" in last(run(*again, code=2))


def test_a_finished_run_is_continued_with_a_note(two_sets, tmp_path):
    words = ("train", "classify", "vit_nano8", "--data", two_sets[0], "--out", tmp_path / "run")
    run(*words, *small())
    done = run(*words, *small(epochs=4), "--json")
    assert "note:" in done.stderr
    assert "resumed at step 4/8 (previously 4 steps)" in done.stderr
    assert "cosine schedule of 8 steps" in done.stderr
    report = json.loads(done.stdout)
    assert (report["resumed_at"], report["steps"]) == (4, 8)
    assert "8 steps done, but 2 are requested" in last(run(*words, *small(epochs=1), code=2))


def test_a_signal_ends_in_one_line(two_sets, tmp_path):
    """A separate process with data-loading processes, all interrupted together, as by Ctrl-C in a terminal."""
    words = ["train", "classify", "vit_nano8", "--data", two_sets[0], "--out", tmp_path / "run"]
    words += [
        *small(epochs=5000, workers=2),
        "--set",
        "log_every=1",
        "--set",
        "eval_every=0",
        "--set",
        "save_every=100000",
    ]
    process = subprocess.Popen(
        [str(COMMAND), *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    (line,) = [line for line in stderr.splitlines() if "stopped" in line]
    step = files.load_header(tmp_path / "run" / "state.safetensors")["step"]
    assert line == f"stopped at step {step}; rerun the same command to resume"
    assert step >= 3
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "metrics.jsonl", "settings.json", "state.safetensors",
    }  # fmt: skip


def test_frames_of_another_size(tmp_path):
    write(tmp_path / "videos" / "a.mp4", synthetic("pan", frames=4, size=(64, 80)).frames, 10)
    words = ("train", "frames", tmp_path / "videos", "--out", tmp_path / "frames")
    run(*words, "--size", 32)
    refused = last(run(*words, "--size", 48, code=2))
    assert "32 pixels, 48 requested; use another --out, or --fresh" in refused
    assert json.loads(run(*words, "--size", 48, "--fresh", "--json").stdout)["frames"] == 4
    assert json.loads(run(*words, "--size", 48, "--json").stdout)["frames"] == 0


@pytest.fixture
def conversations(tmp_path) -> Path:
    lines = []
    for number, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        write(tmp_path / "talks" / f"{number}.mp4", synthetic("digits", frames=6, size=(32, 32), seed=number).frames, 6)
        turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
        lines.append(json.dumps({"id": str(number), "video": f"{number}.mp4", "conversations": turns}))
    (tmp_path / "talks" / "train.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "talks" / "train.jsonl"


def test_a_video_language_model_depends_on_the_seed_and_is_identified_by_its_options(parts, conversations, tmp_path):  # noqa: F811
    words = ("train", "video-llm", "--data", conversations, "--encoder", parts / "vit", "--llm", parts / "llm",
             "--pool", 2, "--size", 32, "--set", "workers=0", "--device", "cpu", "--set", "steps=2",
             "--batch", 2)  # fmt: skip
    some = ("--frames", 4, "--with", "tome(keep=4)")
    for name in ("a", "b"):
        run(*words, *some, "--out", tmp_path / name)
    a, b = (files.load(tmp_path / name / "model" / "parts.safetensors", "video_llm")[0] for name in ("a", "b"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    for other, message in (
        (("--frames", 6, "--with", "tome(keep=4)"), "4, now 6"),
        (("--frames", 4, "--with", "tome(keep=5)"), "tome(keep=4), now tome(keep=5)"),
        ((*some, "--positions", "renumber"), "keep, now renumber"),
        ((*some, "--val", conversations), "test data"),
    ):
        assert message in last(run(*words, *other, "--out", tmp_path / "a", code=2))
    assert not list((tmp_path / "a").rglob(".*"))


def test_a_full_disk_leaves_the_earlier_model(parts, tmp_path, monkeypatch):  # noqa: F811
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
    def lines(self, monkeypatch, capsys, events, total=1000, start=0) -> list[str]:
        clock = [0.0]
        monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock[0]))
        with progress.progress("training", total) as advance:
            for done, now in events:
                clock[0] = now
                advance(done + start, total, f"step {done + start}  loss 0.5")
        return capsys.readouterr().err.splitlines()

    def test_one_line_every_30_seconds(self, monkeypatch, capsys):
        lines = self.lines(monkeypatch, capsys, [(n, 3.0 * n) for n in range(1, 31)])
        assert lines == [
            "step 10  loss 0.5  10/1000, 0.333/s, 0:49:30 left",
            "step 20  loss 0.5  20/1000, 0.333/s, 0:49:00 left",
            "step 30  loss 0.5  30/1000, 0.333/s, 0:48:30 left",
        ]

    def test_one_line_every_5_percent(self, monkeypatch, capsys):
        lines = self.lines(monkeypatch, capsys, [(n, 2.0 * n) for n in range(1, 41)], total=100)
        assert [line.split()[1] for line in lines] == ["5", "10", "15", "20", "25", "30", "35", "40"]

    def test_short_loops_print_nothing(self, monkeypatch, capsys):
        assert self.lines(monkeypatch, capsys, [(n, 0.01 * n) for n in range(1, 51)], total=50) == []

    def test_a_resumed_run_counts_its_own_steps(self, monkeypatch, capsys):
        (line,) = self.lines(monkeypatch, capsys, [(1, 100.0), (41, 140.0)], start=900)
        assert line == "step 941  loss 0.5  941/1000, 1/s, 0:00:59 left"


def test_a_short_kill_campaign(tmp_path, monkeypatch):
    """A part of benchmarks/kills.py: commands killed at random times end with the results of undisturbed ones."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import kills

    cases = [case for case in kills.CASES if case.name == "train"]
    results = kills.campaign(cases, 1, tmp_path, seed=3, log=lambda line: None)
    rows = kills.summarize(cases, results)
    assert rows[0]["kills"] >= 1
    for row in results:
        assert row["complete"] and not row["differing"] and not row["leftovers"], row
    assert rows[0]["bit-equal"] == str(rows[0]["reruns"])
    assert sys.modules["kills"] is kills
