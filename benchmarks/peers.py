"""Speed and memory of every method next to the code that its authors published, in one process.

    python benchmarks/peers.py --peers FOLDER
    python benchmarks/peers.py --peers FOLDER --only sttm,evs
    python benchmarks/peers.py --peers FOLDER --missing      # only rows that have not been measured on this machine

FOLDER contains clones of the repositories named in the table, each at the commit named there (`--list` prints the
commands); packages are installed into the environment that runs this script. Published code is imported and run; none
of it is copied here. A row whose reference is not available is left as it was.

Features: 32 and 128 frames of 14x14 tokens with 896 channels from a real clip of ../shared/data (or $FEWTOKENS_DATA),
encoded by the DINOv2 ViT-S/14 there (blocks 5, 9 and 12, each channel standardized). Ours and theirs alternate; each
runs once before timing. Rows are measured with one and two CPU threads, and on a GPU if there is one. The comparisons
are in peer_rows/.

About an hour and 12 GB on 2 idle cores. Expected: a ratio of at least 1 in every row, or a reason next to it. Results
are written after each row.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

import torch

import fewtokens
from common import RESULTS, describe, machine, markdown_table, write_lines
from fewtokens.profiling.memory import peak_memory
from fidelity_rows import Features
from peer_rows import Pair, Row, Workload, collect
from reasons import shown_reasons

DATA = Path(os.environ.get("FEWTOKENS_DATA") or Path(__file__).parents[2] / "shared" / "data")
CLIP = "clips/vtest.avi"
COMMAND = "python benchmarks/peers.py --peers FOLDER"
TITLE = "Speed and memory next to published code"
NOTES = (
    "Ratio: their time divided by ours, per repeat: median (lowest to highest); above 1, ours is faster. Equal tokens: "
    "fraction of the tokens of both that are the same. Memory: peak of tensors above the inputs, theirs divided by "
    "ours. Limit: the time of one copy of the features divided by our time, for methods that read the features once."
)
# One measurement should not take longer than this in total, unless three repeats do.
_SECONDS = 12


def measure(row: Row, pair: Pair, device: str, repeats: int) -> dict[str, Any]:
    """The numbers of a row at the current number of threads."""
    ours, theirs = pair.ours(), pair.theirs()  # also warms up
    equal = None if pair.agree is None else float(pair.agree(ours, theirs))
    del ours, theirs
    once = _seconds(pair.ours, device) + _seconds(pair.theirs, device)
    repeats = min(repeats, max(3, int(_SECONDS / once)))
    times: list[tuple[float, float]] = []
    for _ in range(repeats):
        times.append((_seconds(pair.ours, device), _seconds(pair.theirs, device)))
    ratios = sorted(theirs / ours for ours, theirs in times)
    ours_ms, theirs_ms = (1000 * statistics.median(column) for column in zip(*times, strict=True))
    memory = [peak_memory(run, torch.device(device)) for run in (pair.ours, pair.theirs)] if row.memory else [None] * 2
    limit = None
    if pair.limit is not None:
        limit = min(_seconds(pair.limit, device) for _ in range(5)) / min(ours for ours, _ in times)
    return {
        "ours_ms": round(ours_ms, 3),
        "theirs_ms": round(theirs_ms, 3),
        "ratio": round(statistics.median(ratios), 3),
        "low": round(ratios[0], 3),
        "high": round(ratios[-1], 3),
        "repeats": repeats,
        "equal_tokens": None if equal is None else round(equal, 5),
        "ours_mib": None if memory[0] is None else round(memory[0] / 2**20, 1),
        "theirs_mib": None if memory[1] is None else round(memory[1] / 2**20, 1),
        "memory_ratio": round(memory[1] / memory[0], 2) if memory[0] and memory[1] else None,
        "limit_share": None if limit is None else round(limit, 3),
    }


def _seconds(run: Callable[[], Any], device: str) -> float:
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = run()
    if device == "cuda":
        torch.cuda.synchronize()
    elapsed = time.perf_counter() - start
    del result
    return elapsed


def cases(rows: Sequence[Row]) -> Iterator[tuple[Row, int, str, int]]:
    """Each row with each number of frames, device and number of threads that it is measured with here."""
    for row in rows:
        devices = [device for device in row.devices if device == "cpu" or torch.cuda.is_available()]
        for frames, device in product(row.frames, devices):
            for threads in row.threads if device == "cpu" else (1,):
                yield row, frames, device, threads


def available(row: Row, peers: Path) -> bool:
    """Whether the published code of a row is there."""
    if row.folder:
        return (peers / row.folder).is_dir()
    try:
        version(row.reference.partition("==")[0])
    except PackageNotFoundError:
        return False
    return True


def write(rows: list[dict[str, Any]]) -> None:
    """Writes results/peers.json, one row per line, and peers.md."""
    hardware = machine() | {"threads": None}
    head = {"title": TITLE, "command": COMMAND, "machine": hardware, "clip": CLIP, "notes": NOTES}
    write_lines(RESULTS / "peers", head, rows, page(rows, head["machine"]))


def page(rows: list[dict[str, Any]], hardware: dict[str, Any]) -> str:
    """peers.md."""
    below = sum(row["ratio"] < 1 for row in rows)
    summary = f"{len(rows)} measurements, {below} of them with a ratio below 1."
    table = markdown_table([_cells(row) for row in rows])
    return f"# {TITLE}\n\n`{COMMAND}`\n\n{describe(hardware)}\n\n{summary}\n\n{table}\n\n{NOTES}\n"


def _cells(row: dict[str, Any]) -> dict[str, str]:
    equal, limit = row["equal_tokens"], row["limit_share"]
    return {
        "method": f"`{row['method']}`",
        "task": row["task"],
        "reference": row["reference"],
        "frames": str(row["frames"] or "-"),
        "device": row["device"] if row["device"] == "cuda" else f"{row['threads']} thread{'s' * (row['threads'] > 1)}",
        "ours, ms": f"{row['ours_ms']:.4g}",
        "theirs, ms": f"{row['theirs_ms']:.4g}",
        "ratio": f"{row['ratio']:.2f} ({row['low']:.2f}-{row['high']:.2f}) x{row['repeats']}",
        "equal tokens": "-" if equal is None else f"{100 * equal:.4g} %",
        "memory": "-" if row["memory_ratio"] is None else f"{row['theirs_mib']:.0f} / {row['ours_mib']:.0f} MiB",
        "limit": "-" if limit is None else f"{100 * limit:.0f} %",
        "reason": shown_reasons(row) or "-",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="folder with the clones of the published code")
    parser.add_argument("--only", help="comma-separated methods; other rows are unchanged")
    parser.add_argument("--missing", action="store_true", help="only rows without a result")
    parser.add_argument(
        "--list", action="store_true", help="print the commands that bring the published code, and exit"
    )
    args = parser.parse_args()
    rows = collect()
    if args.list:
        for reference in dict.fromkeys(row.reference for row in rows):
            name, _, commit = reference.partition("@")
            folder = name.rpartition("/")[2]
            clone = f"git clone https://github.com/{name} FOLDER/{folder}; git -C FOLDER/{folder} checkout {commit}"
            print(clone if commit else f"pip install {reference}")
        return
    if args.peers is None or not DATA.is_dir():
        missing = "--peers FOLDER with the published code" if args.peers is None else "$FEWTOKENS_DATA"
        print(f"peers: skipped, requires {missing}")
        return
    requested = set(args.only.split(",")) if args.only else {row.method for row in rows}
    if unknown := requested - {row.method for row in rows}:
        parser.error(f"no rows for {', '.join(sorted(unknown))}")
    path = RESULTS / "peers.json"
    results = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    names = ("method", "task", "reference", "frames", "device", "threads")
    table = {tuple(line[name] for name in names): line for line in results}
    encoder = fewtokens.load_encoder(DATA / "weights" / "dinov2-small", device="cpu")
    features = Features(DATA / CLIP, encoder)
    order: list[tuple] = []
    failed = []
    for row, frames, device, threads in cases(rows):
        key = (row.method, row.task, row.reference, frames, device, threads)
        order.append(key)
        reasons = {"unequal": row.unequal, "reason": row.reason}
        if key in table:
            table[key] |= reasons
        skip = row.method not in requested or (args.missing and key in table)
        if skip or not available(row, args.peers):
            continue
        torch.set_num_threads(threads)
        try:
            pair = row.build(args.peers, Workload(features, frames, device))
            numbers = measure(row, pair, device, row.repeats)
        except Exception as error:
            message = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            print(f"{row.method}: {message}", file=sys.stderr)
            failed.append(row.method)
            continue
        date = datetime.date.today().isoformat()
        table[key] = {**dict(zip(names, key, strict=True)), **numbers, **reasons, "date": date}
        print(json.dumps(table[key]), flush=True)
        write(list(table.values()))
    write([table[key] for key in order if key in table])
    if failed:
        sys.exit(f"failed: {', '.join(dict.fromkeys(failed))}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    main()
