"""The README is true: its code runs, its commands exist, the methods that it names too."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fewtokens.cli.methods import describe
from fewtokens.core import registry
from fewtokens.video import synthetic, write
from tests.helpers.command import parse

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """Fenced blocks of a language, "" for those without one; a closing fence opens nothing."""
    return [text for name, text in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M) if name == language]


def test_the_python_blocks_run(tmp_path):
    write(tmp_path / "clip.mp4", synthetic("static", frames=8, size=(64, 96)).frames, 8)
    *_, whole, parts = blocks("python")
    printed = [
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        for code in (whole, parts)
    ]
    assert (tmp_path / "clip.safetensors").exists()
    # A tenth of 8 frames of 14 x 21 patches; 16 frames of 8 x 8.
    assert "torch.Size([1, 235, 768])" in printed[0]
    assert "torch.Size([1, 102, 768])" in printed[1] and "'merge_windows'" in printed[1]


def test_the_block_on_language_models_runs():
    code, *_ = blocks("python")
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


def test_the_kinds_are_the_folders():
    rows = dict(re.findall(r"^\| (\w+) \| [^|]+ \| (`.*) \|$", README, re.M))
    known = [*registry.names(), *registry.layer_names()]
    kinds = [
        kind for kind in (*registry.KINDS, registry.LAYER_KIND) if any(registry.kind_of(name) == kind for name in known)
    ]
    assert list(rows) == kinds
    for kind, examples in rows.items():
        assert {registry.kind_of(name) for name in re.findall(r"`(\w+)`", examples)} == {kind}


def test_the_list_of_methods_is_what_the_command_says():
    """The first lines as text, folded to the width of a terminal."""
    (block,) = blocks("text")
    lines = block.splitlines()
    assert lines[0] == "pixels: before the encoder" and lines[1].split() == ["method", "what", "it", "does"]
    entries: dict[str, list[str]] = {}
    for line in lines[3:-1]:
        name, *words = line.split()
        if line[0] != " ":
            entries[name] = words
        else:
            entries[list(entries)[-1]] += [name, *words]
    assert entries
    for name, words in entries.items():
        trained = " (trained)" if registry.get(name).learned else ""
        assert " ".join(words) == describe(name)["summary"] + trained
        assert registry.get(name).stage == "pixels"


def test_links_lead_somewhere():
    for name in ("README.md", "CONTRIBUTING.md", *(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))):
        text = (ROOT / name).read_text()
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            assert link.startswith("https://arxiv.org/") or (ROOT / name).parent.joinpath(link).exists(), link


def test_files_that_a_page_names_exist():
    for name in ("README.md", "CONTRIBUTING.md", *(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))):
        for path in re.findall(r"`((?:\w+/)+\w+\.(?:py|md|json))`", (ROOT / name).read_text()):
            if "loudest" not in path and "my_method" not in path:
                assert (ROOT / path).exists() or (ROOT / "src" / "fewtokens" / path).exists(), (name, path)


def test_methods_that_a_page_names_exist():
    """Specs in code marks: `name(argument=value)`."""
    for name in ("README.md", *(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))):
        for spec in re.findall(r"`(\w+\(\w+=[^`]+\))`", (ROOT / name).read_text()):
            if spec.split("(")[0] in (*registry.names(), *registry.layer_names()):
                registry.build(spec)
