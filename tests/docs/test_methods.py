"""The pages of methods are made from the registry, and a new method is two files."""

from __future__ import annotations

import inspect
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from fewtokens.core import registry

ROOT = Path(__file__).parents[2]


def generate(folder: Path) -> None:
    runpy.run_path(str(ROOT / "docs" / "generate.py"))["write"](folder, images=False)


def test_every_method_has_a_page_and_a_line_of_the_index(tmp_path):
    (tmp_path / "gone.md").write_text("a method of an earlier version")
    generate(tmp_path)
    names = {*registry.names(), *registry.layer_names()}
    assert {path.stem for path in tmp_path.iterdir()} == {*names, "index"}
    index = (tmp_path / "index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\* \[`(\w+)`\]\(\1\.md\): \S", index)) == names
    for name in names:
        page, kind = (tmp_path / f"{name}.md").read_text(encoding="utf-8"), registry.get(name)
        assert page.startswith(f"# {name}\n") and f"{kind.__name__}(" in page
        for argument in inspect.signature(kind).parameters:
            assert re.search(rf"^\| `{argument}` \| `[^|]+` \| (`[^`]+`|see text) \| \S", page, re.M), (name, argument)
        facts = dict(re.findall(r"^\| (\w+) \| (.*) \|$", page, re.M))
        assert facts["kind"] == registry.get_kind(name) and facts["stage"].startswith(kind.stage)
        for fact, attribute in (("paper", "paper"), ("cost", "cost"), ("implementation", "license")):
            text = re.sub(r"\[arXiv ([\d.]+)\]\([^)]*\)", r"\1", re.sub(r"\\([|*_])", r"\1", facts.get(fact, "")))
            expected = re.sub(r"arXiv[: ](?=\d)", "", getattr(kind, attribute))
            assert text == ("" if expected == "none needed" else expected)
        for cue in getattr(kind(), "needs", ()):
            assert f"`{cue}`" in facts["needs"]


def test_the_defaults_are_those_in_effect(tmp_path):
    generate(tmp_path)
    defaults = {
        ("evs", "keep"): "`0.25`",
        ("rlt", "tau"): "`0.1`",
        ("sttm", "tau"): "`0.85`",
        ("sttm", "levels"): "see text",
        ("token_dynamics", "keep"): "`32`",
        ("kmeans", "seed"): "`0`",
    }
    for (name, argument), default in defaults.items():
        page = (tmp_path / f"{name}.md").read_text(encoding="utf-8")
        assert re.search(rf"^\| `{argument}` \| .* \| {default} \|", page, re.M), (name, argument)
    assert "T\\*H\\*W" in (tmp_path / "rlt.md").read_text(encoding="utf-8")


def test_a_stranger_adds_a_method_by_the_two_files_of_contributing(tmp_path):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:src|tests)/\S+loudest\.py)`", text)
    codes = re.findall(r"^```python\n(.*?)^```$", text, re.S | re.M)
    assert len(paths) == len(codes) == 2
    guide = (ROOT / "docs" / "guides" / "add_a_method.md").read_text(encoding="utf-8")
    assert re.findall(r"^```python\n(.*?)^```$", guide, re.S | re.M) == codes
    leave = shutil.ignore_patterns("__pycache__", "results", "runs")
    for folder in ("src", "tests", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=leave)
    results = ("family", "videoqa", "fidelity")
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    for name in results:
        shutil.copy(ROOT / "benchmarks" / "results" / f"{name}.json", tmp_path / "benchmarks" / "results")
    for name in ("README.md", "CONTRIBUTING.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for path, code in zip(paths, codes, strict=True):
        (tmp_path / path).write_text(code, encoding="utf-8")

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path / "src")},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    tests = [paths[1], "tests/laws", "tests/docs/test_readme.py"]
    chosen = "loudest or kinds"
    assert " passed" in run("-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", *tests, "-k", chosen)
    assert "largest norm" in run("-m", "fewtokens", "methods", "loudest")
    run("docs/generate.py", "pages", "--no-images")
    assert "Loudest(keep: float | int | str = 0.25)" in (tmp_path / "pages" / "loudest.md").read_text(encoding="utf-8")
