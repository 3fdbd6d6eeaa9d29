"""Every numeric option with invalid and extreme numbers: a one-line error with exit code 2, or a valid result."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image
from typer.models import ArgumentInfo, OptionInfo
from typer.testing import CliRunner

from fewtokens.cli import app
from fewtokens.cli.verbs import GROUPS, every_verb, find
from fewtokens.video import synthetic, write

VALUES = ("nan", "inf", "-1", "1e308", "1000000000000000")
# The other arguments of each verb, so that it runs fast.
WORDS = {
    "demo": ["--frames", "2", "--size", "32", "--out", "OUT"],
    "cost": ["vit_ti16", "--size", "32"],
    "tokenize": ["CLIP", "--size", "32", "--out", "OUT"],
    "export": ["CLIP", "OUT", "--format", "shards"],
    "words": ["CLIP", "--size", "32", "--words", "4", "--out", "OUT.safetensors"],
    "bench": ["CLIP", "--with", "uniform", "--keep", "0.5", "--frames", "2", "--size", "32", "--repeats", "1",
              "--out", "OUT"],
    "show": ["CLIP", "--size", "32", "--out", "OUT.png"],
    "eval fewshot": ["--data", "DATA", "--size", "32"],
    "eval knn": ["--data", "DATA", "--size", "32"],
}  # fmt: skip
# Options that require other options.
REQUIRED = {
    ("cost", "--text"): ["--with", "uniform"],
    ("cost", "--accuracy"): ["--with", "uniform"],
    ("cost", "--batch"): ["--time"],
    ("cost", "--repeats"): ["--time"],
    ("tokenize", "--workers"): ["--engine", "local"],
    ("tokenize", "--per-shard"): ["--engine", "local"],
    ("tokenize", "--chunk"): ["--chunked", "--with", "rlt"],
    ("tokenize", "--events"): ["--chunked", "--with", "rlt"],
}


def numeric(verb: str) -> list[str]:
    """Returns the numeric options of a verb, and --keep, which the parser reads as text."""
    options = []
    for hint in (parameter.annotation for parameter in find(*verb.split()).parameters):
        # Within Annotated the first name takes the place of a default.
        declarations = [
            name
            for part in getattr(hint, "__metadata__", ())
            if isinstance(part, OptionInfo | ArgumentInfo)
            for name in (part.default, *(part.param_decls or ()))
        ]
        names = [name for name in declarations if isinstance(name, str) and name.startswith("--")]
        if names:
            kinds = {kind for part in [hint.__origin__, *get_args(hint.__origin__)] for kind in (part, *get_args(part))}
            if kinds & {int, float} or names[0] == "--keep":
                options.append(names[0])
    return options


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("numbers")
    write(root / "clip.mp4", synthetic("static", frames=4, size=(32, 32)).frames, 10)
    for label, color in (("a", (200, 0, 0)), ("b", (0, 0, 200))):
        for number in range(6):
            (root / "data" / label).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), color).save(root / "data" / label / f"{number}.png")
    return root


# demo runs all methods for each number, so its seed is only tested with the other verbs.
CASES = [(v, option) for v in WORDS for option in numeric(v) if (v, option) != ("demo", "--seed")]


def test_every_verb_is_covered():
    numberless = {"methods", "models", "llm-families", "doctor", "tokenizers"}
    excluded = {"ask", "eval classify", "eval qa", "eval videoqa"}  # they require a model
    excluded |= {"eval linear"}  # like the other probes
    excluded |= {"page"}  # it serves until it is stopped
    excluded |= {"encode", "decode", "eval reconstruction"}  # they require a tokenizer
    data_sets = {f"eval {name}" for name in ("davis", "jhmdb", "vip", "bc")}
    trains = {f"train {name}" for name in GROUPS["train"]}
    every = {" ".join(names) for names in every_verb()}
    assert set(WORDS) | numberless | excluded | data_sets | trains == every
    assert len(CASES) > 40


@pytest.mark.parametrize(("verb", "option"), CASES)
def test_no_number_causes_a_traceback(inputs, tmp_path, verb, option):
    for number, value in enumerate(VALUES):
        names = {"CLIP": str(inputs / "clip.mp4"), "DATA": str(inputs / "data")}
        words = [names.get(word, word.replace("OUT", str(tmp_path / f"{number}"))) for word in WORDS[verb]]
        required = REQUIRED.get((verb, option), [])
        if "--with" in required and verb == "cost":
            words = []
        with contextlib.suppress(ValueError):  # each option once
            position = words.index(option)
            del words[position : position + 2]
        start = time.process_time()
        done = CliRunner().invoke(app, [*verb.split(), *words, *required, f"{option}={value}"])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise AssertionError(f"{option}={value}: {done.exception!r}") from done.exception
        assert done.exit_code in (0, 2), f"{option}={value}: exit {done.exit_code}, {done.output}"
        if done.exit_code == 2:
            assert "Traceback" not in done.output
        assert time.process_time() - start < 300, f"{option}={value}"
