"""Every method beside the code that its authors published, on the same features of real clips.

    python benchmarks/fidelity.py --peers FOLDER
    python benchmarks/fidelity.py --peers FOLDER --only tome,visionzip

FOLDER holds clones of the repositories that the table names, each at the commit that it names:

    git clone https://github.com/facebookresearch/ToMe FOLDER/ToMe; git -C FOLDER/ToMe checkout af95e4b

`--list` prints these lines for all of them. Published code is imported from there and run; none of it is here.
The rows of `tokenlearner` and `token_turing` need jax[cpu], flax, ml_collections, immutabledict, absl-py and optax.

Features: 32 frames (unless a row says otherwise) of three clips of ../shared/data (or $FEWTOKENS_DATA), by the DINOv2
ViT-S/14 there, each channel standardized over the clip. A row is the mean share of equal tokens over the clips, the
largest difference of their features, and why they differ; each comparison is a function in fidelity_rows/.

About 5 minutes and 4 GB on 2 cores. Expected: 100 % for every method whose docstring claims the published decisions,
and a reason in every row below. Results are written row by row. A row is measured again when our code, its
comparison or the reference's commit has changed; where the reference is not in FOLDER, the row measured before stays.
Without --peers it measures nothing and says so, and what is there stays.
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
from common import RESULTS, machine, markdown_table
from fewtokens.core import registry
from fewtokens.core.files import whole_file
from fidelity_rows import Features, Row, collect

DATA = Path(os.environ.get("FEWTOKENS_DATA") or Path(__file__).parents[2] / "shared" / "data")
CLIPS = ("clips/vtest.avi", "clips/bedroom.mp4", "clips/sample_demo_1.mp4")
COMMAND = "python benchmarks/fidelity.py --peers FOLDER"
TITLE = "Beside the published code"
NOTES = (
    "Equal tokens: the share of the tokens of both that stand for the same cells, or have the same features within "
    "1e-4 (learned methods: 1e-3, token_turing 0.02); the mean of three clips. Difference: the largest absolute one "
    "between the features of equal tokens, which are standardized; 0 where only places are compared. Rows without a "
    "number say why in the last column."
)


def measure(row: Row, peers: Path, clips: list[Features]) -> dict[str, float | str]:
    """A row's numbers over all clips."""
    assert row.compare is not None
    found = [row.compare(peers, clip) for clip in clips]
    return {
        "equal": sum(one.equal for one in found) / len(found),
        "difference": max(one.difference for one in found),
        "why": next((one.why for one in found if one.why), row.why),
    }


def commit_of(clone: Path, named: str) -> str:
    """The commit at which a clone stands; the one that the row names where single files of it were brought."""
    if not (clone / ".git").exists():
        return named
    command = ["git", "-C", str(clone), "rev-parse", "--short=7", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def code_of(row: Row) -> str:
    """A hash of our code and of the row's comparison: a row of another hash was measured with other code."""
    sources = sorted(Path(fewtokens.__file__).parent.rglob("*.py"))
    if row.compare is not None:
        sources += [Path(inspect.getfile(row.compare)), Path(inspect.getfile(Row))]
    text = hashlib.sha256()
    for path in sources:
        text.update(path.read_bytes())
    return text.hexdigest()[:12]


def write(rows: list[dict[str, Any]]) -> None:
    """results/fidelity.json, one row a line, and fidelity.md."""
    head = {"title": TITLE, "command": COMMAND, "machine": machine(), "clips": CLIPS, "notes": NOTES}
    lines = ",\n".join(json.dumps(row) for row in rows)
    with whole_file(RESULTS / "fidelity.json") as path:
        path.write_text(json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n{lines}\n ]\n}}\n', encoding="utf-8")
    facts = ", ".join(f"{key} {value}" for key, value in head["machine"].items() if value is not None)
    table = [
        {
            "method": f"`{row['method']}`",
            "reference": f"{row['reference']} @{row['commit']}" if row["commit"] else row["reference"] or "-",
            "settings": row["settings"] or "-",
            "equal tokens": "-" if row["equal"] is None else f"{100 * row['equal']:.4g} %",
            "difference": "-" if row["difference"] is None else f"{row['difference']:.1e}",
            "why they differ": row["why"] or "they do not",
        }
        for row in rows
    ]
    with whole_file(RESULTS / "fidelity.md") as path:
        text = f"# {TITLE}\n\n`{COMMAND}`\n\n{facts}\n\n{markdown_table(table)}\n\n{NOTES}\n\n{without_row(rows)}\n"
        path.write_text(text, encoding="utf-8")


def without_row(rows: list[dict[str, Any]]) -> str:
    """A sentence that names the methods of the registry that the table lacks."""
    missing = sorted({*registry.names(), *registry.layer_names()} - {row["method"] for row in rows})
    return f"Methods without a row: {', '.join(f'`{name}`' for name in missing) or 'none'}."


def result(row: Row, peers: Path, clips: list[Features], before: dict[str, Any] | None) -> tuple[dict[str, Any], bool]:
    """A row's line of the table, and whether its comparison failed."""
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
        found = measure(row, peers, clips)
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        print(f"{row.method}: {said}", file=sys.stderr)
        return before or {**unmeasured, "why": f"not run: {said}"}, True
    return {**line, **found, "code": code, "date": datetime.date.today().isoformat()}, False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="the folder of clones")
    parser.add_argument("--only", help="methods, separated by commas; the other rows stay as they are")
    parser.add_argument("--list", action="store_true", help="print what to clone")
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
        print(f"fidelity: needs {missing}, left out")
        return
    wanted = set(args.only.split(",")) if args.only else {row.method for row in rows}
    if unknown := wanted - {row.method for row in rows}:
        parser.error(f"no row of {', '.join(sorted(unknown))}")
    path = RESULTS / "fidelity.json"
    lines = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    key = ("method", "reference", "settings")
    table = {tuple(line[name] for name in key): line for line in lines}
    encoder = fewtokens.load_encoder(DATA / "weights" / "dinov2-small", device="cpu")
    clips = [Features(DATA / clip, encoder) for clip in CLIPS]
    places = [(row.method, row.repository, row.settings) for row in rows]
    failed = []
    for row, place in zip(rows, places, strict=True):
        if row.method not in wanted:
            continue
        before = table.get(place)
        measured = before if before and before["equal"] is not None else None
        table[place], broken = result(row, args.peers, clips, measured)
        failed += [row.method] if broken else []
        print(json.dumps(table[place]), flush=True)
        write([table[place] for place in places if place in table])
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    main()
