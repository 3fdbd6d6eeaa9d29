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
from typing import Any

import pytest
import torch

from fewtokens.core import registry
from fewtokens.video import synthetic, write
from tests.helpers.clips import clip
from tests.helpers.pages import ROOT, blocks

GUIDE = ROOT / "docs" / "guides" / "add_a_method.md"


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    """The pages of all methods, in a folder that had the page of a method of an earlier version."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "gone.md").write_text("a method of an earlier version", encoding="utf-8")
    runpy.run_path(str(ROOT / "docs" / "generate.py"))["write"](folder, images=False)
    return folder


def test_every_method_has_a_page_and_a_line_of_the_index(pages):
    names = {*registry.every_name()}
    assert {path.stem for path in pages.iterdir()} == {*names, "index"}
    index = (pages / "index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\* \[`(\w+)`\]\(\1\.md\): \S", index)) == names
    for name in names:
        page, kind = (pages / f"{name}.md").read_text(encoding="utf-8"), registry.get(name)
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


def test_the_defaults_are_those_in_effect(pages):
    defaults = {
        ("evs", "keep"): "`0.25`",
        ("rlt", "tau"): "`0.1`",
        ("sttm", "tau"): "`0.85`",
        ("sttm", "levels"): "see text",
        ("token_dynamics", "keep"): "`32`",
        ("kmeans", "seed"): "`0`",
    }
    for (name, argument), default in defaults.items():
        page = (pages / f"{name}.md").read_text(encoding="utf-8")
        assert re.search(rf"^\| `{argument}` \| .* \| {default} \|", page, re.M), (name, argument)
    assert "T\\*H\\*W" in (pages / "rlt.md").read_text(encoding="utf-8")


def test_contributing_leaves_the_example_to_the_guide():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert "](docs/guides/add_a_method.md)" in text
    assert not [block for block in blocks(ROOT / "CONTRIBUTING.md") if block.language == "python"]


def test_a_stranger_adds_a_method_by_the_two_files_of_the_guide(tmp_path):
    paths = list(dict.fromkeys(re.findall(r"`((?:src|tests)/\S+loudest\.py)`", GUIDE.read_text(encoding="utf-8"))))
    codes = [block.text for block in blocks(GUIDE) if block.language == "python"][:2]
    assert len(paths) == len(codes) == 2
    leave = shutil.ignore_patterns("runs")
    for folder in ("src", "tests", "docs", "benchmarks", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=leave)
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "mkdocs.yml", "pyproject.toml"):
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

    # Nothing else changes: its laws hold, and the tests of the documentation that read the registry pass too.
    named = "benchmarks or fidelity or methods_that or measured or page or contributing"
    names = ("test_methods", "test_benchmarks", "test_fidelity", "test_readme", "test_site")
    tests = [paths[1], "tests/laws", *(f"tests/docs/{name}.py" for name in names)]
    chosen = f"loudest or kinds or (({named}) and not stranger and not blocks and not clones)"
    assert " passed" in run("-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", *tests, "-k", chosen)
    assert "largest norm" in run("-m", "fewtokens", "methods", "loudest")
    run("docs/generate.py", "pages", "--no-images", "--only", "loudest")
    page = (tmp_path / "pages" / "loudest.md").read_text(encoding="utf-8")
    assert "Loudest(keep: float | int | str = 0.25)" in page
    assert "Fidelity" not in page


def test_the_other_blocks_of_the_guide_run(tmp_path, monkeypatch, capsys):
    merging, minimum, instance = [block.text for block in blocks(GUIDE) if block.language == "python"][2:]
    names: dict[str, Any] = {}
    exec(merging, names)
    frame_pairs = names["FramePairs"]()
    tokens = clip(T=5, lengths=[5, 2])
    out = frame_pairs(tokens).check()
    assert out.count.tolist() == [3 * 30, 30]
    torch.testing.assert_close(out.features[0, :30], (tokens.features[0, :30] + tokens.features[0, 30:60]) / 2)
    assert torch.equal(out.features[0, 60:], tokens.features[0, 120:])
    with pytest.raises(ValueError, match="FramePairs works on whole frames"):
        frame_pairs(out)

    exec(minimum, names)
    floor = type("Floor", (registry.get("random"),), {"min_count": names["min_count"]})(keep=0.01)
    assert floor.planned_count(tokens.grid) == floor.max_slots(tokens) == 30
    assert floor(tokens).count.tolist() == [30, 30]
    monkeypatch.chdir(tmp_path)
    write("clip.mp4", synthetic("static", frames=8, size=(64, 96)).frames, 8)
    exec(instance, names | {"MyMethod": registry.get("random")})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["random(keep=0.1,", "tome(keep=0.1,"]
