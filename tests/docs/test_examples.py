"""The examples run: on tiny models in place of those of the hub, or on a folder with `--model`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from fewtokens import llm
from fewtokens.video import synthetic, write
from tests.llm.saved import save
from tests.llm.test_messages import picture, save_with_images

EXAMPLES = Path(__file__).parents[2] / "examples"
FAMILY = {
    "qwen2_5_vl_3b": "qwen2_5_vl",
    "smolvlm2_256m_video": "smolvlm",
    "llava_onevision_0_5b": "llava_onevision",
}
# The arguments after --model, and the number of lines.
WITH_A_FOLDER = {
    "two_turns": (["clip.mp4", "what happens", "how many people"], 2),
    "batch": (["what happens", "clip.mp4", "clip.mp4"], 2),
    "images": (["how many people", "a.png", "b.png"], 1),
}


def test_there_is_no_other_example():
    # serve_vllm needs vLLM; tests/serve/engine runs the modules that it calls.
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*FAMILY, *WITH_A_FOLDER, "serve_vllm"}


@pytest.mark.parametrize("name", FAMILY)
def test_an_example_runs(name, tmp_path, monkeypatch, capsys):
    path = EXAMPLES / f"{name}.py"
    assert f"python examples/{name}.py" in path.read_text() and "Downloads about" in path.read_text()
    folder = save(FAMILY[name], tmp_path / "model")
    clip = write(tmp_path / "clip.mp4", synthetic("static", frames=16, size=(64, 96)).frames, 8)
    real = llm.load
    asked: list[str] = []
    monkeypatch.setattr(llm, "load", lambda hub, **more: asked.append(hub) or real(folder, device="cpu", **more))
    runpy.run_path(str(path))["main"](str(clip), "what happens")
    assert len(asked) == 1 and asked[0].count("/") == 1
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("family", ["qwen2_5_vl", "smolvlm"])
@pytest.mark.parametrize("name", WITH_A_FOLDER)
def test_an_example_runs_on_a_folder(name, family, tmp_path, monkeypatch, capsys):
    path, (arguments, lines) = EXAMPLES / f"{name}.py", WITH_A_FOLDER[name]
    assert f"python examples/{name}.py --model" in path.read_text()
    folder = save_with_images(family, tmp_path / "model")
    write(tmp_path / "clip.mp4", synthetic("static", frames=8, size=(64, 96)).frames, 8)
    for file in ("a.png", "b.png"):
        picture().save(tmp_path / file)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "argv", [str(path), "--model", str(folder), *arguments])
    runpy.run_path(str(path), run_name="__main__")
    out = capsys.readouterr().out
    assert len(out.splitlines()) >= lines
    if name == "images":
        after, _, _, _, before = out.split(":")[0].split()
        assert 0 < int(after) < int(before)
