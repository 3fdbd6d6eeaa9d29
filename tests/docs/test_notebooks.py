"""The notebooks run from top to bottom, without network access or weights, and their links and outputs are in order."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "docs" / "notebooks"
NAMES = ("quickstart", "compare_methods", "compress_a_video_llm")


def test_no_other_notebook():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_small_and_its_links_exist(name):
    path = NOTEBOOKS / f"{name}.ipynb"
    assert path.stat().st_size < 1_500_000
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["cells"][0]["cell_type"] == "markdown" and notebook["cells"][0]["source"][0].startswith("# ")
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            for target in re.findall(r"\]\(([^)#]+)", "".join(cell["source"])):
                assert (NOTEBOOKS / target).exists(), target
        else:
            assert not [output for output in cell["outputs"] if output["output_type"] == "error"]
            # A message on stderr, or a path of the machine, is not for readers.
            assert not re.search(r'"stderr"|/(home|root|tmp|work)/', json.dumps(cell["outputs"]))


def test_the_real_model_takes_one_line():
    text = (NOTEBOOKS / "compress_a_video_llm.ipynb").read_text(encoding="utf-8")
    assert len(re.findall(r"# model, inputs = real_model\(", text)) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for extra in ("pandas", "matplotlib", "transformers"):
        pytest.importorskip(extra)
    source = str(Path(__file__).parents[2] / "src")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH")))))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(bool(cell.outputs) for cell in code) >= len(code) // 2
    images = [out for cell in code for out in cell.outputs if "image/png" in out.get("data", {})]
    assert images
