"""docs/formats.md names every key that the verbs print, and no other: checked on tiny runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fewtokens.cli import app
from fewtokens.data.demonstrations import write as write_demonstrations
from fewtokens.evaluation.simulate import record
from fewtokens.tokenizers import Tokenizer
from fewtokens.tokenizers.files import read_header
from fewtokens.video import synthetic, write
from tests.evaluation.dots import Dots
from tests.helpers.dense import make_davis, make_jhmdb, make_vip
from tests.llm.saved import save

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
ROW = re.compile(r"^\| `([^`]+)` \|([^|]*)\|[^|]*\|[^|]*\|$", re.M)
SECTION = re.compile(r"^## (.+?)\n(.*?)(?=^## |\Z)", re.S | re.M)


def documented() -> dict[str, dict[str, str]]:
    """The tables of the page: by section, the type of each key."""
    return {
        name: {key: kind.strip() for key, kind in ROW.findall(body)} for name, body in SECTION.findall(PAGE.read_text())
    }


def keys_of(value: Any, prefix: str = "") -> Iterator[str]:
    """The keys of plain values as the page writes them: "rows[].cosine"."""
    if isinstance(value, dict):
        for key, entry in value.items():
            name = f"{prefix}.{key}" if prefix else key
            yield name
            yield from keys_of(entry, name)
    elif isinstance(value, list):
        for entry in value:
            yield from keys_of(entry, f"{prefix}[]" if prefix else "")


def matches(pattern: str, key: str) -> bool:
    """Whether a documented key, in which capital words represent any text, is this key."""
    parts = re.split(r"([A-Z]{2,})", pattern)
    return bool(re.fullmatch("".join(".+" if n % 2 else re.escape(part) for n, part in enumerate(parts)), key))


def run(*words: object) -> Any:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, f"{words}: {done.output}"
    return json.loads(done.stdout) if "--json" in words else None


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def printed(tmp_path_factory) -> dict[str, list[Any]]:
    """What tiny runs print and write, by section of the page."""
    folder = tmp_path_factory.mktemp("formats")
    clip = write(folder / "clip.mp4", synthetic("static", frames=8, size=(32, 48)).frames, 8)
    davis = make_davis(folder / "davis", names=("one",))
    native = ("--set", "size=native", "--device", "cpu", "--json")
    found: dict[str, list[Any]] = {
        "methods": [run("methods", "rlt", "--json")],
        "llm-families": [run("llm-families", "--json"), [run("llm-families", "qwen2_vl", "--json")]],
        "models NAME": [run("models", "vit_nano8", "--json")],
        "doctor": [run("doctor", "--json")],
        "cost": [
            run("cost", "x2plus1d_m", "--size", 32, "--frames", 4, "--json"),
            run("cost", "vit_nano8", "--size", 16, "--time", "--repeats", 1, "--device", "cpu", "--json"),
        ],
        "cost --with": [run("cost", "--with", "uniform(keep=4)", "--grid", "2x3x3", "--accuracy", 50, "--json")],
    }
    with pytest.MonkeyPatch.context() as patch:
        # Drawing every method, and building every network, is not what is tested.
        patch.setattr("fewtokens.show.draw_sheet", lambda *args, **options: None)
        patch.setattr("fewtokens.networks.names", lambda: ["vit_nano8"])
        found["models"] = [run("models", "--json")]
        found["demo"] = [run("demo", "--frames", 2, "--size", 32, "--out", folder / "demo", "--json")]
    small = ("--size", 32, "--json")
    found["tokenize"] = [
        run("tokenize", clip, "--frames", 4, *small, "--out", folder / "tokens.safetensors"),
        run("tokenize", clip, "--chunked", "--with", "rlt", "--events", 0.5, *small, "--out", folder / "chunks"),
    ]
    (folder / "list.txt").write_text(f"{clip}\nnone.mp4\n", encoding="utf-8")
    done = CliRunner().invoke(
        app, [*map(str, ("tokenize", folder / "list.txt", *small, "--workers", 1, "--out", folder / "job"))]
    )
    found["tokenize, a job"] = [json.loads(done.stdout)]
    found["Manifest of a job"] = lines(folder / "job/manifest/000000.jsonl")
    shards = ("--format", "shards", "--json")
    found["export"] = [run("export", folder / "tokens.safetensors", folder / "shards", *shards)]
    spec = "tubelet(8, stride=(2, 8, 8)) | lfq(3) > tubelet(stride=(2, 8, 8))"
    code = folder / "code.safetensors"
    found["encode"] = [run("encode", clip, "--tokenizer", spec, "--device", "cpu", "--out", code, "--json")]
    compare = ("--compare", clip, "--out", folder / "decoded.mp4")
    found["decode"] = [run("decode", code, "--device", "cpu", *compare, "--json")]
    trained = Tokenizer.from_spec(spec).save_pretrained(folder / "trained")
    few = ("--frames", 2, "--size", 16, "--codecs", "", "--random3d", "--shrinkage", 0.5, "--clips", 2)
    found["eval reconstruction"] = [run("eval", "reconstruction", clip, "--tokenizers", trained, *few, "--json")]
    found["train bpe"] = [run("train", "bpe", code, "--out", folder / "merged", "--json")]
    found["encoded videos"] = [dict(read_header(code))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fewtokens.cli.tokenizers.part_names", lambda kind: ("bpe",))
        found["tokenizers"] = [run("tokenizers", "--json")]
    name = run("tokenizers", "bpe", "--json")
    assert name.keys() >= found["tokenizers"][0][0].keys()
    found["tokenizers NAME"] = [{key: name[key] for key in name.keys() - found["tokenizers"][0][0].keys()}]
    bench = ("--frames", 4, "--with", "uniform", "--keep", 0.5, "--davis-size", 32, "--out", folder / "bench")
    results = folder / "bench" / "results.json"
    found["bench"] = [run("bench", clip, "--davis", davis, *bench, *small), json.loads(results.read_text())]
    found["bench --compare"] = [run("bench", "--compare", results, results, "--json")]

    model = save("llava_onevision", folder / "model")
    few = ("--model", model, "--frames", 8, "--device", "cpu", "--with", "kmeans(keep=4)", "--json")
    found["ask"] = [
        run("ask", clip, "what happens", *few, *more, "--max-new-tokens", length)
        for length, *more in ((2, "--compare"), (9, "--decompose", 1))
    ]
    (folder / "questions.txt").write_text("0.5 what happens\n9 what happens\n")
    words = ("ask", "--stream", clip, "--questions", folder / "questions.txt", "--model", model, "--device", "cpu")
    done = CliRunner().invoke(app, [*map(str, words), "--max-new-tokens", "2", "--json"])
    assert done.exit_code == 2  # the second question stays open
    found["ask --stream"] = [json.loads(done.stdout)]
    found["eval videoqa"] = [
        run("eval", "videoqa", *few, "--limit", 4, "--size", 32, "--out", folder / "replies.jsonl")
    ]
    found["replies"] = lines(folder / "replies.jsonl")

    out = ("--out", folder / "scores")
    found["eval davis"] = [run("eval", "davis", "--data", davis, "--score-size", "both", *out, *native)]
    found["eval davis"] += [json.loads((folder / "scores" / "results.json").read_text())]
    if _has_scipy():
        jhmdb = make_jhmdb(folder / "jhmdb", clips=("jump/first",))
        found["eval jhmdb"] = [run("eval", "jhmdb", "--data", jhmdb, "--device", "cpu", "--json")]
    found["eval vip"] = [run("eval", "vip", "--data", make_vip(folder / "vip", names=("videos2",)), *native)]
    demonstrations = write_demonstrations(folder / "demos.safetensors", record(Dots(), 4, 16, hold=2), proprio=2)
    policy = (
        "--encoder",
        "patches",
        "--feature",
        "cells",
        "--size",
        16,
        "--demos",
        4,
        "--set",
        "epochs=1",
        "--seeds",
        2,
    )
    found["eval bc"] = [run("eval", "bc", "--data", demonstrations, *policy, "--device", "cpu", "--json")]

    images = _images(folder / "images")
    quick = ("--size", 16, "--batch", 4, "--workers", 0, "--device", "cpu")
    classes = ("train", "classify", "vit_nano8", "--data", images, *quick, "--epochs", 1, "--json", "--out")
    found["train"] = [run(*classes, folder / "run")]
    found["train --dry-run"] = [run(*classes, folder / "dry", "--dry-run")]
    found["metrics.jsonl"] = lines(folder / "run" / "metrics.jsonl")
    found["eval classify"] = [run("eval", "classify", folder / "run" / "model", "--data", images, "--json")]
    probe = ("--data", images, "--size", 16, "--device", "cpu", "--json")
    found["eval fewshot, eval linear, eval knn"] = [
        run("eval", "linear", *probe), run("eval", "knn", *probe), run("eval", "fewshot", "--shots", 2, *probe),
    ]  # fmt: skip
    tiny = ("patch_size=8", "dim=16", "num_heads=2", "depth=1", "decoder_depth=1", "visits=2", "shown=2")
    words = [word for setting in tiny for word in ("--set", setting)]
    packed = run("train", "frames", folder, "--size", 16, "--out", folder / "frames", "--json")
    found["train frames"] = [packed]
    job = ("train", "frames", clip, "--size", 16, "--engine", "local", "--out", folder / "frames_job", "--json")
    found["train frames, a job"] = [run(*job)]
    found["Manifest of a job"] += lines(folder / "frames_job/manifest/000000.jsonl")
    tobo = ("train", "tobo", folder / "frames", *quick, *words, "--steps", 2, "--json", "--out", folder)
    found["train"].append(run(*tobo[:-1], folder / "tobo"))
    found["train --dry-run"].append(run(*tobo[:-1], folder / "none", "--dry-run"))
    found["metrics.jsonl"] += lines(folder / "tobo" / "metrics.jsonl")
    return found


def _has_scipy() -> bool:
    try:
        import scipy  # noqa: F401
    except ImportError:
        return False
    return True


def _images(folder: Path) -> Path:
    """Two classes by color, five images each."""
    rng = np.random.default_rng(0)
    for channel, label in enumerate(("red", "green")):
        (folder / label).mkdir(parents=True)
        for n in range(5):
            pixels = rng.integers(0, 90, (20, 20, 3), dtype=np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(folder / label / f"{n}.png")
    return folder


def is_documented(key: str, section: dict[str, str]) -> bool:
    """Whether the section has the key, or an object above it whose keys it does not list."""
    for name, kind in section.items():
        if matches(name, key):
            return True
        opaque = "object" in kind and not any(other.startswith((f"{name}.", f"{name}[].")) for other in section)
        inner = f"{name}[]" if kind.startswith("list") else name
        if opaque and any(matches(inner, key[:end]) for end in (m.start() for m in re.finditer(r"\.", key))):
            return True
    return False


def test_every_printed_key_is_documented(printed):
    page = documented()
    for name, values in printed.items():
        unknown = {key for key in keys_of(values) if not is_documented(key, page[name])}
        assert not unknown, (name, sorted(unknown))


def test_every_documented_key_is_printed(printed):
    for name, section in documented().items():
        if name in ("eval qa", "eval jhmdb") and name not in printed:
            continue  # a public set, and scipy
        keys = set(keys_of(printed[name]))
        absent = [
            key for key, kind in section.items() if "optional" not in kind and not any(matches(key, k) for k in keys)
        ]
        assert not absent, (name, absent)


def test_keys_are_plain():
    """Snake case, but for names that are values: of clips, packages and sizes."""
    for name, section in documented().items():
        for key in section:
            assert re.fullmatch(r"(([a-z0-9_]+|[A-Z]+)(_[a-z]+)?(\[\])?\.?)+", key), (name, key)
