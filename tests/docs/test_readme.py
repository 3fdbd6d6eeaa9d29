"""The README is true: its code runs, its commands exist, its table is the registry."""

from __future__ import annotations

import inspect
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fewtokens.core import registry
from tests.helpers.command import parse

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.S | re.M)


def test_the_python_block_runs(tmp_path):
    _, code = blocks("python")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "clip.safetensors").exists()
    assert "torch.Size([1, 102, 768])" in done.stdout


def test_the_block_on_language_models_runs():
    code, _ = blocks("python")
    from tests.llm.tiny import prompt, tiny

    names = {"model": tiny("llava_onevision")}
    names["inputs"] = prompt("llava_onevision", ("text", 5), ("video", 8), ("text", 5)).inputs
    exec(code, names)
    # 10 words, a tenth of 8 x 16 cells, the newline, and what was generated.
    assert names["ids"].shape[1] == 10 + 12 + 1 + 64


def commands() -> list[list[str]]:
    lines = [line for block in blocks("") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("fewtokens ")]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_the_commands_exist(words):
    parse(words)
    for word in words[2:]:
        if re.fullmatch(r"[a-z_]+\(.*\)", word):
            registry.build(word)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_has_the_targets():
    for target in re.findall(r"^make (\w+)", README + (ROOT / "CONTRIBUTING.md").read_text(), re.M):
        done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_table_is_the_registry():
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\w, ]+) \|", README, re.M))
    assert list(rows) == registry.names()
    for name, stages in rows.items():
        assert registry.get(name)().stage in stages.split(", ")


def test_the_example_of_contributing_works():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    space: dict = {"__name__": "loudest"}
    exec(code, space)
    method = space["Loudest"](3)
    assert inspect.signature(type(method)).parameters.keys() == {"keep"}
    from tests.helpers.clips import clip

    out = method(clip())
    assert out.count.tolist() == [3, 3]


def test_links_lead_somewhere():
    for name in ("README.md", "CONTRIBUTING.md", *(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))):
        text = (ROOT / name).read_text()
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert link.startswith("https://arxiv.org/") or (ROOT / name).parent.joinpath(link).exists(), link
