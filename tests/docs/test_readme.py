"""The README and the pages of docs/ are true: their code runs, their commands, files and methods exist."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from typing import Any

import pytest

from fewtokens.core import registry
from fewtokens.llm.tower import TOWER_CUES
from fewtokens.video import synthetic, write
from tests.helpers.command import parse
from tests.helpers.pages import ROOT, blocks, commands, name, pages

README = ROOT / "README.md"
COMMANDS = [(name(page), words) for page in pages() for words in commands(page)]
PYTHON = {
    name(page): [block for block in blocks(page) if block.language == "python"]
    for page in pages()
    if page.is_relative_to(ROOT / "docs") and page.name not in ("architecture.md", "add_a_method.md")
}


def clip(folder):
    write(folder / "clip.mp4", synthetic("static", frames=8, size=(64, 96)).frames, 8)


def test_the_first_block_of_the_readme_runs_by_itself(tmp_path):
    clip(tmp_path)
    code = next(block.text for block in blocks(README) if block.language == "python")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    # A tenth of 16 frames of 8 x 8 patches.
    assert "torch.Size([1, 102, 768])" in done.stdout
    assert (tmp_path / "static.safetensors").exists()


@pytest.mark.parametrize("page", ["README.md", "docs/guides/compress_a_video_llm.md"])
def test_blocks_on_language_models_run(page, tmp_path, monkeypatch, capsys):
    """From `load` to the decoded answers, with a tiny model in place of the one that a page names."""
    import fewtokens
    from tests.llm.test_session import loaded

    clip(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fewtokens.llm, "load", lambda name: loaded("qwen2_5_vl"))
    codes = [block.text for block in blocks(ROOT / page) if block.language == "python" and "attach(" in block.text]
    codes = [code for code in codes if ".attach(" not in code and "images=" not in code]
    assert codes
    names: dict[str, Any] = {}
    for code in codes:
        exec(code, names)
        assert names["ids"].shape[1] == names["few"].last.inputs["input_ids"].shape[1] + 64
        # A quarter of the cells, and at least one frame.
        for tokens in names["few"].last.tokens:
            assert max(tokens.grid.cells // 4, tokens.grid.cells_per_frame) == tokens.N
    tokenizer, prompt = names["processor"].tokenizer, names["prompt"]
    answers = tokenizer.batch_decode(names["ids"][:, prompt:], skip_special_tokens=True)
    assert all(answers) and names.get("answers", answers) == answers
    if page != "README.md":
        assert len(answers) == 2 and names["answer"] and answers[0] == names["answer"]
    assert capsys.readouterr().out.strip()


def test_the_block_on_streams_runs(tmp_path, monkeypatch):
    import fewtokens
    from tests.llm.test_session import loaded

    clip(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fewtokens.llm, "load", lambda name: loaded("qwen2_5_vl"))
    page = blocks(ROOT / "docs/guides/compress_a_video_llm.md")
    (code,) = [block.text for block in page if block.language == "python" and "StreamSession" in block.text]
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["answer"] and names["session"].frames and (tmp_path / "state.safetensors").is_file()


def test_the_block_on_images_runs(tmp_path, monkeypatch):
    import fewtokens
    from tests.llm.test_messages import loaded, picture

    clip(tmp_path)
    picture().save(tmp_path / "page.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fewtokens.llm, "load", lambda name: loaded("qwen2_5_vl"))
    page = blocks(ROOT / "docs/guides/compress_a_video_llm.md")
    (code,) = [block.text for block in page if block.language == "python" and "images=" in block.text]
    names: dict[str, Any] = {}
    exec(code, names)
    image, video = names["few"].last.tokens
    assert image.grid.cells // 4 == image.N and max(video.grid.cells // 4, video.grid.cells_per_frame) == video.N


def test_the_guide_names_the_methods_that_read_the_vision_tower():
    page = (ROOT / "docs" / "guides" / "compress_a_video_llm.md").read_text(encoding="utf-8")
    first = page.partition("## Attention of the vision tower\n\n")[2].partition(".")[0]
    needs = {name: set(getattr(registry.get(name)(), "needs", ())) for name in registry.list_methods(stage="tokens")}
    assert set(re.findall(r"`(\w+)`", first)) == {name for name in needs if needs[name] & set(TOWER_CUES)}


@pytest.mark.parametrize("page", [page for page, found in PYTHON.items() if found])
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch, capsys):
    """All blocks of a page in one namespace; those that need weights must at least compile."""
    clip(tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in PYTHON[page]:
        code = compile(block.text, page, "exec")
        if "needs weights" in block.note or "tiny language model" in block.note:
            continue
        exec(code, names)
    printed = capsys.readouterr().out
    if page == "docs/quickstart.md":
        # A tenth of 8 frames of 14 x 21 patches.
        assert "torch.Size([1, 235, 768])" in printed and "'merge_windows'" in printed
    if page == "docs/guides/write_your_own_encoder.md":
        assert "torch.Size([2, 156, 384])" in printed and "torch.Size([1, 51, 32])" in printed


def test_a_stream_of_the_guide_is_the_full_video(tmp_path, monkeypatch, capsys):
    import torch

    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in PYTHON["docs/guides/stream.md"]:
        exec(block.text, names)
    full = names["pipeline"](names["fewtokens"].read("camera.mp4"))
    assert torch.equal(names["whole"].features, full.features)


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{page}: {' '.join(words)}" for page, words in COMMANDS])
def test_the_commands_exist(page, words):
    if "loudest" in " ".join(words):
        return  # the method that the guide adds
    parse(words)
    for word in words[2:]:
        if re.fullmatch(r"[a-z_]+\(.*\)", word):
            registry.build(word)


def test_the_tables_have_every_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(project["optional-dependencies"])
    for page, missing in (("docs/quickstart.md", set()), ("README.md", {"dev", "docs"})):
        text = (ROOT / page).read_text(encoding="utf-8")
        table = re.search(r"^\| extra \| adds \|\n\|---\|---\|\n((?:\|.*\n)+)", text, re.M)
        listed = {name for row in table[1].splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}
        assert listed == extras - missing, page


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").split()) < 1200


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_has_the_targets():
    for page in (*pages(), ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"^make ([\w-]+)", page.read_text(encoding="utf-8"), re.M):
            done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, (name(page), done.stderr)


def test_the_kinds_are_the_folders():
    page = (ROOT / "docs" / "guides" / "choose_a_method.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\w+) \| [^|]+ \| (`[^|]*) \|$", page, re.M))
    known = registry.every_name()
    kinds = [kind for kind in registry.ALL_KINDS if any(registry.get_kind(name) == kind for name in known)]
    assert list(rows) == kinds
    for kind, examples in rows.items():
        assert {registry.get_kind(name) for name in re.findall(r"`(\w+)`", examples)} == {kind}


def test_files_that_a_page_names_exist():
    for page in (*pages(), ROOT / "CONTRIBUTING.md"):
        for path in re.findall(r"`((?:\w+/)+\w+\.(?:py|md|json))`", page.read_text(encoding="utf-8")):
            if "loudest" not in path and "my_method" not in path:
                assert (ROOT / path).exists() or (ROOT / "src" / "fewtokens" / path).exists(), (name(page), path)


def test_methods_that_a_page_names_exist():
    """Specs in code marks: `name(argument=value)`; decisions also name what they replaced."""
    for page in [page for page in pages() if page.parent.name != "decisions"]:
        for spec in re.findall(r"`(\w+\(\w+=[^`]+\))`", page.read_text(encoding="utf-8")):
            if spec.split("(")[0] in registry.every_name():
                registry.build(spec)
