"""What the benchmarks share: the machine, fair timing, results as JSON and Markdown."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """CPU, cores, versions, date."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":")[1].strip() if lines else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "date": datetime.date.today().isoformat(),
    }


def time_side_by_side(
    runs: dict[str, Callable[[], Any]], repeats: int = 7, *, warm: bool = False
) -> dict[str, dict[str, float]]:
    """Milliseconds of each run: median, least and most over the repeats.

    The runs take turns, so that a slow moment of the machine falls on all of them; each runs once before, unless it is
    warm already.
    """
    for run in () if warm else runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(1000 * (time.perf_counter() - start))
    return {
        name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
        for name, values in times.items()
    }


def peak_memory(run: Callable[[], Any]) -> int:
    """Bytes by which the resident memory of this process rises at most while `run` runs."""
    import psutil

    process = psutil.Process()
    before = peak = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return peak - before


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Rows with equal keys as a Markdown table."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = [
            f"{value:.6g}" if isinstance(value, float) else "-" if value is None else str(value)
            for value in row.values()
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def joined(
    name: str, command: str, rows: list[dict[str, Any]], head: str = "", order: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """A table's rows and those that the same command wrote before of other encoders, trained elsewhere perhaps.

    Args:
        name: of the results.
        command: of the report.
        rows: of the table, each with its "encoder".
        head: of the table, where the results have several.
        order: of the encoders; those it does not name come last.
    """
    path = RESULTS / f"{name}.json"
    report = json.loads(path.read_text()) if path.exists() else {"command": None, "rows": []}
    before = report["rows"].get(head, []) if isinstance(report["rows"], dict) else report["rows"]
    here = {row["encoder"] for row in rows}
    others = [row for row in before if row["encoder"] not in here and report["command"] == command]
    columns = dict.fromkeys(column for row in (*others, *rows) for column in row)
    places = {encoder: place for place, encoder in enumerate(order)}
    both = sorted((*others, *rows), key=lambda row: places.get(row["encoder"], len(places)))
    return [{column: row.get(column) for column in columns} for row in both]


def write(name: str, title: str, command: str, rows: Any, notes: str = "", pictures: Sequence[str] = ()) -> None:
    """Prints tables and writes them to results/NAME.json and NAME.md, with machine and command.

    Args:
        name: of the files.
        title, command: of the report.
        rows: one table as a list of rows with equal keys, or several as {title: rows}.
        notes: a paragraph below.
        pictures: files in results/ that are shown in the Markdown.
    """
    where = machine()
    tables = rows if isinstance(rows, dict) else {"": rows}
    text = "\n\n".join((f"## {head}\n\n" if head else "") + markdown_table(part) for head, part in tables.items())
    print(f"\n{title}\n\n{text}\n{notes}")
    RESULTS.mkdir(exist_ok=True)
    report = {"title": title, "command": command, "machine": where, "rows": rows, "notes": notes}
    (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
    facts = ", ".join(f"{key} {value}" for key, value in where.items() if value is not None)
    text = f"# {title}\n\n`{command}`\n\n{facts}\n\n{text}\n"
    text += "".join(f"\n![{picture}]({picture})\n" for picture in pictures)
    (RESULTS / f"{name}.md").write_text(text + (f"\n{notes}\n" if notes else ""))
