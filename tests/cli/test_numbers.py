"""Every option that takes a number, with numbers that nobody means: one line and exit code 2, or a right result."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image
from typer.testing import CliRunner

from fewtokens.cli import app
from fewtokens.cli.verbs import GROUPS, every_verb, find
from fewtokens.video import synthetic, write

VALUES = ("nan", "inf", "-1", "1e308", "1000000000000000")
# How each verb is run otherwise: quickly, and so that the option at hand has a meaning.
WORDS = {
    "demo": ["--frames", "2", "--size", "32", "--out", "OUT"],
    "cost": ["vit_ti16", "--size", "32"],
    "tokenize": ["CLIP", "--size", "32", "--out", "OUT"],
    "words": ["CLIP", "--size", "32", "--words", "4", "--out", "OUT.safetensors"],
    "bench": ["CLIP", "--with", "uniform", "--keep", "0.5", "--frames", "2", "--size", "32", "--repeats", "1",
              "--out", "OUT"],
    "show": ["CLIP", "--size", "32", "--out", "OUT.png"],
    "eval fewshot": ["--data", "DATA", "--size", "32"],
    "eval knn": ["--data", "DATA", "--size", "32"],
}  # fmt: skip
# Options that need others beside them.
BESIDE = {
    ("cost", "--text"): ["--with", "uniform"],
    ("cost", "--accuracy"): ["--with", "uniform"],
    ("cost", "--batch"): ["--time"],
    ("cost", "--repeats"): ["--time"],
    ("tokenize", "--chunk"): ["--chunked", "--with", "rlt"],
    ("tokenize", "--events"): ["--chunked", "--with", "rlt"],
}


def numeric(verb: str) -> list[str]:
    """The options of a verb that take a number; budgets too, which are text to the parser."""
    found = []
    for hint in (parameter.annotation for parameter in find(*verb.split()).parameters):
        # Within Annotated the first name stands where a default would.
        said = [
            name for part in getattr(hint, "__metadata__", ()) for name in (part.default, *(part.param_decls or ()))
        ]
        names = [name for name in said if isinstance(name, str) and name.startswith("--")]
        if names:
            kinds = {kind for part in [hint.__origin__, *get_args(hint.__origin__)] for kind in (part, *get_args(part))}
            if kinds & {int, float} or names[0] == "--keep":
                found.append(names[0])
    return found


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("numbers")
    write(root / "clip.mp4", synthetic("static", frames=4, size=(32, 32)).frames, 10)
    for label, color in (("a", (200, 0, 0)), ("b", (0, 0, 200))):
        for number in range(6):
            (root / "data" / label).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), color).save(root / "data" / label / f"{number}.png")
    return root


# All methods run whenever demo takes a number, so its seed is left to the other verbs.
CASES = [(v, option) for v in WORDS for option in numeric(v) if (v, option) != ("demo", "--seed")]


def test_every_verb_is_tried():
    numberless = {"methods", "models", "doctor"}
    elsewhere = {"ask", "eval classify", "eval qa", "eval videoqa"}  # they need a model
    elsewhere |= {"eval linear"}  # as the other probes
    data_sets = {f"eval {name}" for name in ("davis", "jhmdb", "vip", "bc")}
    trains = {f"train {name}" for name in GROUPS["train"]}
    every = {" ".join(names) for names in every_verb()}
    assert set(WORDS) | numberless | elsewhere | data_sets | trains == every
    assert len(CASES) > 40


@pytest.mark.parametrize(("verb", "option"), CASES)
def test_no_number_ends_in_a_traceback(inputs, tmp_path, verb, option):
    for number, value in enumerate(VALUES):
        names = {"CLIP": str(inputs / "clip.mp4"), "DATA": str(inputs / "data")}
        words = [names.get(word, word.replace("OUT", str(tmp_path / f"{number}"))) for word in WORDS[verb]]
        beside = BESIDE.get((verb, option), [])
        if "--with" in beside and verb == "cost":
            words = []
        with contextlib.suppress(ValueError):  # said once
            at = words.index(option)
            del words[at : at + 2]
        began = time.process_time()
        done = CliRunner().invoke(app, [*verb.split(), *words, *beside, f"{option}={value}"])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise AssertionError(f"{option}={value}: {done.exception!r}") from done.exception
        assert done.exit_code in (0, 2), f"{option}={value}: exit {done.exit_code}, {done.output}"
        if done.exit_code == 2:
            assert "Traceback" not in done.output
        assert time.process_time() - began < 300, f"{option}={value}"
