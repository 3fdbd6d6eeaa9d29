"""The fidelity table is true: rows of methods that exist, a reason in every row that is not equal."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fewtokens.core import registry

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
ROWS = json.loads((RESULTS / "fidelity.json").read_text(encoding="utf-8"))["rows"]


def test_no_row_is_of_a_method_that_is_gone():
    rows = {row["method"] for row in ROWS}
    assert rows <= {*registry.names(), *registry.layer_names()}
    assert len(rows) > 50


def test_the_page_names_the_methods_without_a_row(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import fidelity

    left_out = [row for row in ROWS if row["method"] not in ("tome", "fastv")]
    monkeypatch.setattr(fidelity, "RESULTS", tmp_path)
    fidelity.write(left_out)
    page = (tmp_path / "fidelity.md").read_text(encoding="utf-8")
    (sentence,) = [line for line in page.splitlines() if line.startswith("Methods without a row: ")]
    without = set(re.findall(r"`(\w+)`", sentence))
    assert {"tome", "fastv"} <= without
    assert without | {row["method"] for row in left_out} == {*registry.names(), *registry.layer_names()}
    assert not without & {row["method"] for row in left_out}
    assert json.loads((tmp_path / "fidelity.json").read_text(encoding="utf-8"))["rows"] == left_out


def test_the_committed_page_is_that_of_the_rows():
    page = (RESULTS / "fidelity.md").read_text(encoding="utf-8")
    assert page.count("\n| `") == len(ROWS)
    (sentence,) = [line for line in page.splitlines() if line.startswith("Methods without a row: ")]
    assert not set(re.findall(r"`(\w+)`", sentence)) & {row["method"] for row in ROWS}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['method']}: {row['settings']}")
def test_a_row_is_measured_or_says_why_not(row):
    if row["equal"] is None:
        assert row["why"] and "not in FOLDER" not in row["why"]
    else:
        assert 0 <= row["equal"] <= 1
        assert row["reference"] and row["commit"] and row["settings"]
        assert row["why"] or row["equal"] == 1


def test_without_clones_it_says_what_it_needs_and_leaves_the_table():
    before = (RESULTS / "fidelity.json").read_bytes()
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "fidelity.py"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert "--peers FOLDER" in done.stdout
    assert (RESULTS / "fidelity.json").read_bytes() == before
