"""The examples run: on tiny models in place of those of the hub."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from fewtokens import llm
from fewtokens.video import synthetic, write
from tests.llm.saved import save

EXAMPLES = Path(__file__).parents[2] / "examples"
FAMILY = {
    "qwen2_5_vl_3b": "qwen2_5_vl",
    "smolvlm2_256m_video": "smolvlm",
    "llava_onevision_0_5b": "llava_onevision",
}


def test_there_is_no_other_example():
    # serve_vllm needs vLLM; tests/serve/engine runs the modules that it calls.
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*FAMILY, "serve_vllm"}


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
