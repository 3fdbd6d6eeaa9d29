"""Checks a GPU in at most 8 minutes: tests that need one, and the speed scripts at a reduced size.

    make gpu-check
    python benchmarks/gpu_check.py --minutes 15 --only tests

One part after another, each in a separate process with a time limit; a part that does not finish is listed as such.
Without a GPU, the tests are skipped and the scripts that need one are not run, so that this script can be tried
anywhere. Writes `benchmarks/results/gpu_check.md` after each part; the scripts' own results remain as they were. Exit
code 1 if a part fails.

Cost: 8 minutes on one GPU; 3 on 2 CPU cores without one.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from common import RESULTS, describe, machine
from fewtokens.core.files import atomic_file

ROOT = Path(__file__).parents[1]


class Part(NamedTuple):
    """One part of the check.

    Attributes:
        name: its name in the report.
        arguments: of the Python interpreter.
        seconds: time limit.
        cpu: whether it also runs without a GPU.
    """

    name: str
    arguments: list[str]
    seconds: int
    cpu: bool


def script(name: str, *options: str) -> list[str]:
    return [f"benchmarks/{name}.py", *options]


PARTS = [
    Part("tests", ["-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "--color=no", "tests"], 240, True),
    Part("tobo_speed, tiny", script("tobo_speed", "--tiny"), 60, True),
    Part("onevision_cost, 2 frames", script("onevision_cost", "--gpu", "--quick"), 60, False),
    Part("tower_patches, 2 layers", script("tower_patches", "--layers", "2", "--repeats", "2"), 60, False),
    Part("propagation_speed, 8 frames", script("propagation_speed", "--frames", "8", "--repeats", "2"), 60, False),
]


def run(part: Part, seconds: float) -> dict[str, Any]:
    """Runs one part and returns its row."""
    if not part.cpu and not torch.cuda.is_available():
        return {"part": part.name, "result": "skipped: no GPU", "s": 0.0, "output": ""}
    start = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, *part.arguments],
                cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=seconds,
                env=os.environ | {"FEWTOKENS_RESULTS": folder},
            )  # fmt: skip
        output, code = done.stdout + done.stderr, done.returncode
        result = "passed" if code == 0 else f"failed with exit code {code}"
    except subprocess.TimeoutExpired as error:
        output = b"".join(text or b"" for text in (error.stdout, error.stderr)).decode("utf-8", "replace")
        result = f"not finished in {seconds:.0f} s"
    return {"part": part.name, "result": result, "s": round(time.perf_counter() - start, 1), "output": output[-6000:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, help="time for all parts (default: %(default)s)")
    parser.add_argument("--only", help="the parts whose names contain this text")
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    rows: list[dict[str, Any]] = []
    for part in PARTS:
        if args.only and args.only not in part.name:
            continue
        left = end - time.monotonic()
        if left < 5:
            rows.append({"part": part.name, "result": "not started: no time left", "s": 0.0, "output": ""})
        else:
            rows.append(run(part, min(part.seconds, left)))
        print(f"{rows[-1]['part']:<30} {rows[-1]['s']:6.1f} s  {rows[-1]['result']}", flush=True)
        report(rows)
    failed = [row for row in rows if row["result"].startswith("failed")]
    for row in failed:
        print(f"\n{row['part']}:\n{row['output']}")
    print(f"\n{RESULTS / 'gpu_check.md'}")
    sys.exit(bool(failed))


def report(rows: list[dict[str, Any]]) -> None:
    """Writes the results so far, with the output of each part."""
    lines = [f"| {row['part']} | {row['result']} | {row['s']} | {summary(row['output'])} |" for row in rows]
    outputs = [f"## {row['part']}\n\n```\n{row['output'].strip()}\n```\n" for row in rows if row["output"]]
    page = f"# Checks on a GPU\n\n{describe(machine())}\n\n| part | result | s | summary |\n|---|---|---|---|\n"
    RESULTS.mkdir(exist_ok=True)
    with atomic_file(RESULTS / "gpu_check.md") as temporary:
        temporary.write_text(page + "\n".join([*lines, "", *outputs]) + "\n", encoding="utf-8")


def summary(output: str) -> str:
    """Returns the last line of the output that has a number, as pytest's counts."""
    lines = [line for line in output.splitlines() if re.search(r"\d", line) and "|" not in line]
    return lines[-1].strip("= ")[:120] if lines else ""


if __name__ == "__main__":
    main()
