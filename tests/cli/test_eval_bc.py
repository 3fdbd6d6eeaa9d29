"""`fewtokens eval bc`: held-out demonstrations, a task, resuming, and errors."""

from __future__ import annotations

import json
import os
import pickle
import sys

import pytest
from typer.testing import CliRunner

from fewtokens.cli import app
from fewtokens.data.demonstrations import write
from fewtokens.evaluation import cloning_run, simulate
from fewtokens.evaluation.simulate import record
from tests.evaluation.dots import Dots
from tests.helpers.robots import KEYS, STATES, write_dataset

QUICK = ("--encoder", "patches", "--feature", "cells", "--size", 16, "--set", "epochs=20", "--set", "every=10")


def run(*words):
    return CliRunner().invoke(app, ["eval", "bc", *map(str, words)], env={"COLUMNS": "200"})


def text(result):
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demos")
    about = {"task": "dots/reach", "camera": "above", "proprio": 2}
    return write(folder / "demos.safetensors", record(Dots(), 10, 16, hold=2), **about)


@pytest.fixture
def dots(monkeypatch):
    def make(task, *, camera=None, horizon=None):
        return Dots(horizon or 20)

    monkeypatch.setattr(cloning_run, "make_environment", make)
    monkeypatch.setattr(simulate, "make_environment", make)


def test_held_out(demos):
    result = run("--data", demos, *QUICK, "--seeds", 2, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["score"] == "held-out error"
    assert report["mean"] < report["mean_action_error"]
    assert report["protocol"]["proprio"] == 2  # as in the file
    assert len(report["seeds"]) == 2
    assert report["ci95"] > 0
    assert "note" not in report
    result = run("--data", demos, *QUICK, "--seeds", 1, "--set", "proprio=1", "--json")
    assert json.loads(result.stdout)["protocol"]["proprio"] == 1  # as requested


def test_a_task(dots, demos, tmp_path):
    words = ("--task", "dots/reach", *QUICK, "--rollouts", 4, "--seeds", 2, "--film", 2, "--hold", 2, "--out", tmp_path)
    result = run(*words, "--demos", 6)
    assert result.exit_code == 0, result.output
    assert "best success, %" in result.output
    assert "not the environments of the papers" in text(result)
    assert (tmp_path / "seed_1.png").stat().st_size > 1000
    assert (tmp_path / "seed_1.mp4").is_file()
    before = (tmp_path / "seed_0.json").read_bytes()
    again = run(*words, "--demos", 6, "--json")
    assert json.loads(again.stdout)["sheets"] == [str(tmp_path / f"seed_{n}.png") for n in (0, 1)]
    assert (tmp_path / "seed_0.json").read_bytes() == before
    other = run(*words, "--demos", 5)
    assert other.exit_code == 2
    assert "other settings (demos)" in text(other)


def test_written_demonstrations(dots, tmp_path):
    path = tmp_path / "demos.safetensors"
    result = run("--task", "dots/reach", "--write-demos", path, "--demos", 4, "--size", 16, "--hold", 0, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["demonstrations"] == 4
    result = run("--task", "dots/reach", "--data", path, "--demos", 4, "--feature", "none", "--set", "epochs=4",
                 "--set", "every=4", "--rollouts", 2, "--seeds", 1)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "one seed, no interval" in text(result)


def test_no_class_token(demos):
    result = run("--data", demos, "--encoder", "patches", "--size", 16, "--set", "epochs=1", "--seeds", 1)
    assert result.exit_code == 0, result.output
    assert "using the mean of its tokens" in text(result)
    result = run("--data", demos, "--encoder", "patches", "--feature", "class", "--size", 16)
    assert result.exit_code == 2
    assert "no class token" in text(result)


class Payload:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_lerobot_dataset(tmp_path, version, dots):
    pytest.importorskip("pyarrow")
    folder = write_dataset(tmp_path / "set", version, KEYS)
    words = ("--data", folder, *QUICK, "--demos", 3, "--seeds", 1, "--out", tmp_path / "run", "--json")
    result = run(*words, "--camera", "wrist")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["score"] == "held-out error"
    assert report["protocol"]["proprio"] == STATES
    assert report["protocol"]["data"]["name"] == "set"
    assert run(*words, "--camera", "wrist").stdout == result.stdout  # resumed
    for other, message in (
        (words, "has several cameras; choose one of"),
        ((*words, "--camera", "top"), "contains a run with other settings (camera"),
        (("--data", folder / "meta", *QUICK), "not a LeRobot dataset"),
        (("--data", folder, *QUICK, "--camera", "top"), "contains 3 demonstrations, 10 requested"),
    ):
        failed = run(*other)
        assert failed.exit_code == 2, failed.output
        assert message in text(failed)
    # The only camera of a dataset need not have the name of the simulator's.
    single = write_dataset(tmp_path / "single", version)
    task = ("--task", "dots/reach", "--camera", "above", "--data", single, *QUICK, "--demos", 3)
    assert "must be square" in text(run(*task))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--encoder", "patches"), "specify a task or a file"),
        (("--data", "DEMOS"), "give --encoder, or --feature none"),
        (("--data", "DEMOS", "--encoder", "patches", "--feature", "none"), "give --encoder, or --feature none"),
        (("--data", "DEMOS", "--encoder", "patches", "--camera", "corner"), "requires --task"),
        (("--data", "DEMOS", "--encoder", "patches", "--demos", "11"), "contains 10 demonstrations, 11 requested"),
        (("--data", "DEMOS", "--encoder", "patches", "--preset", "rlbench"), "must be one of r3m"),
        (("--data", "DEMOS", "--encoder", "patches", "--set", "speed=3"), "settings: feature"),
        (("--data", "DEMOS", "--encoder", "patches", "--task", "metaworld/hammer"), "demonstrations of dots/reach"),
        (("--data", "DEMOS", "--task", "dots/reach", "--encoder", "patches", "--camera", "below"), "camera above"),
        (("--data", "nowhere.pickle", "--encoder", "patches"), "no such file"),
        (("--data", "EVIL", "--encoder", "patches"), "only numpy arrays and plain values"),
        (("--data", "BLIND", "--encoder", "patches"), "has no images"),
        (("--task", "hammer", "--encoder", "patches"), "must be metaworld/TASK or kitchen/TASK"),
        (("--task", "metaworld/hammer", "--encoder", "patches", "--seeds", "0"), "at least 1"),
    ],
)
def test_bad_input(demos, tmp_path, words, message):
    evil, blind = tmp_path / "evil.pickle", tmp_path / "blind.pickle"
    evil.write_bytes(pickle.dumps([Payload()]))
    blind.write_bytes(pickle.dumps([{"observations": [[1.0]], "actions": [[1.0]], "rewards": [1.0]}]))
    paths = {"DEMOS": demos, "EVIL": evil, "BLIND": blind}
    result = run(*(paths.get(word, word) for word in words))
    assert result.exit_code == 2, result.output
    assert message in text(result)


def test_without_the_simulators(monkeypatch):
    for name in ("metaworld", "gymnasium_robotics"):
        monkeypatch.setitem(sys.modules, name, None)
    for task in ("metaworld/hammer", "kitchen/microwave"):
        result = run("--task", task, "--encoder", "patches")
        assert result.exit_code == 2
        assert "pip install 'fewtokens[sim]'" in text(result)
