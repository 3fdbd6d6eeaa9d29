"""The fidelity table is whole: a row for every method, a reason in every row that is not equal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fewtokens.core import registry

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
ROWS = json.loads((RESULTS / "fidelity.json").read_text(encoding="utf-8"))["rows"]


def test_every_method_has_a_row():
    missing = {*registry.names(), *registry.layer_names()} - {row["method"] for row in ROWS}
    assert not missing, f"python benchmarks/fidelity.py --peers FOLDER --only {','.join(sorted(missing))}"


def test_no_row_is_of_a_method_that_is_gone():
    assert {row["method"] for row in ROWS} <= {*registry.names(), *registry.layer_names()}


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
