"""Every method compared with the code that its authors published, on the same features of real clips.

    python benchmarks/fidelity.py --peers FOLDER
    python benchmarks/fidelity.py --peers FOLDER --only tome,visionzip

FOLDER contains clones of the repositories named in the table, each at the commit named there:

    git clone https://github.com/facebookresearch/ToMe FOLDER/ToMe; git -C FOLDER/ToMe checkout af95e4b

`--list` prints these commands for all of them. Published code is imported from the clones and run; none of it is
copied here. The rows of `tokenlearner` and `token_turing` require jax[cpu], flax, ml_collections, immutabledict,
absl-py and optax.

Features: 32 frames (unless a row states otherwise) of three clips of ../shared/data (or $FEWTOKENS_DATA), encoded by
the DINOv2 ViT-S/14 there, each channel standardized over the clip. A row has the mean fraction of equal tokens over the
clips, the largest difference of their features, and the reason for any difference. The comparisons are functions in
fidelity_rows/.

About 5 minutes and 4 GB on 2 cores. Expected: 100 % for every method whose docstring claims the published decisions,
and a reason in every row below 100 %. Results are written after each row. A row is measured again if this package, its
comparison or the reference's commit has changed; if the reference is not in FOLDER, the previous row is kept. Without
--peers nothing is measured or changed.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import inspect
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import fewtokens
from common import RESULTS, describe, machine, markdown_table, write_lines
from fewtokens.core import registry
from fidelity_rows import Features, Row, collect

DATA = Path(os.environ.get("FEWTOKENS_DATA") or Path(__file__).parents[2] / "shared" / "data")
CLIPS = ("clips/vtest.avi", "clips/bedroom.mp4", "clips/sample_demo_1.mp4")
COMMAND = "python benchmarks/fidelity.py --peers FOLDER"
TITLE = "Fidelity to published code"
NOTES = (
    "Equal tokens: fraction of the tokens of both that represent the same cells, or have the same features within "
    "1e-4 (learned methods: 1e-3, token_turing 0.02); mean of three clips. Difference: largest absolute difference "
    "between the features of equal tokens, which are standardized; 0 if only positions are compared. Rows without "
    "numbers state the reason in the last column."
)


def measure(row: Row, peers: Path, clips: list[Features]) -> dict[str, float | str]:
    """A row's numbers over all clips."""
    assert row.compare is not None
    agreements = [row.compare(peers, clip) for clip in clips]
    return {
        "equal": sum(part.equal for part in agreements) / len(agreements),
        "difference": max(part.difference for part in agreements),
        "why": next((part.why for part in agreements if part.why), row.why),
    }


def commit_of(clone: Path, default: str) -> str:
    """The commit that a clone has checked out, or `default` if the folder is not a git clone."""
    if not (clone / ".git").exists():
        return default
    command = ["git", "-C", str(clone), "rev-parse", "--short=7", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def code_of(row: Row) -> str:
    """A hash of this package and the row's comparison; if it differs, the row was measured with other code."""
    sources = sorted(Path(fewtokens.__file__).parent.rglob("*.py"))
    if row.compare is not None:
        sources += [Path(inspect.getfile(row.compare)), Path(inspect.getfile(Row))]
    text = hashlib.sha256()
    for path in sources:
        text.update(path.read_bytes())
    return text.hexdigest()[:12]


def write(rows: list[dict[str, Any]]) -> None:
    """Writes results/fidelity.json, one row per line, and fidelity.md."""
    head = {"title": TITLE, "command": COMMAND, "machine": machine(), "clips": CLIPS, "notes": NOTES}
    write_lines(RESULTS / "fidelity", head, rows, page(rows, head["machine"]))


def page(rows: list[dict[str, Any]], hardware: dict[str, Any]) -> str:
    """fidelity.md."""
    table = [
        {
            "method": f"`{row['method']}`",
            "reference": f"{row['reference']} @{row['commit']}" if row["commit"] else row["reference"] or "-",
            "settings": row["settings"] or "-",
            "equal tokens": "-" if row["equal"] is None else f"{100 * row['equal']:.4g} %",
            "difference": "-" if row["difference"] is None else f"{row['difference']:.1e}",
            "reason for the difference": row["why"] or "identical",
        }
        for row in rows
    ]
    parts = (f"# {TITLE}", f"`{COMMAND}`", describe(hardware), markdown_table(table), NOTES, without_row(rows))
    return "\n\n".join(parts) + "\n"


def without_row(rows: list[dict[str, Any]]) -> str:
    """A sentence that lists the registered methods without a row."""
    missing = sorted({*registry.names(), *registry.layer_names()} - {row["method"] for row in rows})
    return f"Methods without a row: {', '.join(f'`{name}`' for name in missing) or 'none'}."


def result(row: Row, peers: Path, clips: list[Features], before: dict[str, Any] | None) -> tuple[dict[str, Any], bool]:
    """The table line of a row, and whether its comparison failed."""
    line = {"method": row.method, "reference": row.repository, "commit": row.commit, "settings": row.settings}
    unmeasured = {**line, "equal": None, "difference": None, "why": row.why, "code": None, "date": None}
    if row.compare is None:
        return unmeasured, False
    clone = peers / row.folder
    if row.commit and not clone.is_dir():
        return before or {**unmeasured, "why": "not run: reference not in FOLDER"}, False
    line["commit"], code = commit_of(clone, row.commit) if row.commit else version(row.folder), code_of(row)
    if before and (before["commit"], before["code"]) == (line["commit"], code):
        return before, False
    try:
        scores = measure(row, peers, clips)
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        print(f"{row.method}: {message}", file=sys.stderr)
        return before or {**unmeasured, "why": f"not run: {message}"}, True
    return {**line, **scores, "code": code, "date": datetime.date.today().isoformat()}, False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="folder with the clones of the published code")
    parser.add_argument("--only", help="comma-separated methods; other rows are unchanged")
    parser.add_argument(
        "--list", action="store_true", help="print the commands that clone the published code, and exit"
    )
    args = parser.parse_args()
    rows = collect()
    if args.list:
        for repository, commit, folder in dict.fromkeys(
            (r.repository, r.commit, r.folder) for r in rows if r.compare and r.commit
        ):
            print(
                f"git clone https://github.com/{repository} FOLDER/{folder}; git -C FOLDER/{folder} checkout {commit}"
            )
        return
    if args.peers is None or not DATA.is_dir():
        missing = "--peers FOLDER with the published code" if args.peers is None else "$FEWTOKENS_DATA"
        print(f"fidelity: skipped, requires {missing}")
        return
    requested = set(args.only.split(",")) if args.only else {row.method for row in rows}
    if unknown := requested - {row.method for row in rows}:
        parser.error(f"no rows for {', '.join(sorted(unknown))}")
    path = RESULTS / "fidelity.json"
    lines = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    key = ("method", "reference", "settings")
    table = {tuple(line[name] for name in key): line for line in lines}
    encoder = fewtokens.load_encoder(DATA / "weights" / "dinov2-small", device="cpu")
    clips = [Features(DATA / clip, encoder) for clip in CLIPS]
    keys = [(row.method, row.repository, row.settings) for row in rows]
    failed = []
    for row, index in zip(rows, keys, strict=True):
        if row.method not in requested:
            continue
        before = table.get(index)
        measured = before if before and before["equal"] is not None else None
        table[index], broken = result(row, args.peers, clips, measured)
        failed += [row.method] if broken else []
        print(json.dumps(table[index]), flush=True)
        write([table[index] for index in keys if index in table])
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    main()
