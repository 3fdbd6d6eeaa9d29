"""A short run of the fuzzing of damaged files, see benchmarks/fuzz.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"


def test_a_short_run_finds_no_failure(tmp_path):
    command = [sys.executable, str(SCRIPT), "--work", str(tmp_path), "--share", "0.005", "--workers", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr
    summary = json.loads(run.stdout.splitlines()[-1])
    rows = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert len(rows) == summary["mutants"] > 60
    assert 10 < summary["read"] < summary["mutants"] - 10, "some damage is detected, but not all"
