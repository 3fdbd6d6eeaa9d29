"""What the benchmarks share: the machine, fair timing, results as JSON and Markdown.

python benchmarks/common.py [NAME ...]   # renders results/NAME.md from NAME.json again; default: all
"""

from __future__ import annotations

import argparse
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

from fewtokens.core.files import atomic_file

# A check at a reduced size writes elsewhere.
RESULTS = Path(os.environ.get("FEWTOKENS_RESULTS", Path(__file__).parent / "results"))


def machine() -> dict[str, Any]:
    """CPU, cores, threads, GPU, versions and date."""
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


def describe(hardware: dict[str, Any]) -> str:
    """The facts of `machine` as text, without those that are None."""
    return ", ".join(f"{key} {value}" for key, value in hardware.items() if value is not None)


def time_side_by_side(
    runs: dict[str, Callable[[], Any]], repeats: int = 7, *, warm: bool = False
) -> dict[str, dict[str, float]]:
    """Median, minimum and maximum milliseconds of each run over the repeats.

    The runs alternate, so that a slow phase of the machine affects all of them. Each runs once before timing, unless
    `warm` is set.
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
    """Largest increase in resident memory of this process while `run` runs, in bytes."""
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
    """The rows of a table together with the rows of other encoders that the same command wrote earlier.

    Args:
        name: name of the results.
        command: command in the report.
        rows: new rows, each with its "encoder".
        head: title of the table if the results contain several.
        order: order of the encoders; unlisted ones come last.
    """
    path = RESULTS / f"{name}.json"
    report = json.loads(path.read_text()) if path.exists() else {"command": None, "rows": []}
    before = report["rows"].get(head, []) if isinstance(report["rows"], dict) else report["rows"]
    new = {row["encoder"] for row in rows}
    others = [row for row in before if row["encoder"] not in new and report["command"] == command]
    columns = dict.fromkeys(column for row in (*others, *rows) for column in row)
    ranks = {encoder: rank for rank, encoder in enumerate(order)}
    both = sorted((*others, *rows), key=lambda row: ranks.get(row["encoder"], len(ranks)))
    return [{column: row.get(column) for column in columns} for row in both]


def write(
    name: str, title: str, command: str, rows: Any, notes: str = "", images: Sequence[str] = (), digits: int = 6
) -> None:
    """Prints tables and writes them to results/NAME.json and NAME.md, with machine and command.

    Args:
        name: stem of the files.
        title, command: title of the report and the command that makes it.
        rows: one table as a list of rows with equal keys, or several as {title: rows}.
        notes: a paragraph below the tables.
        images: files in results/ that the Markdown shows.
        digits: significant digits of floats in the rows.
    """
    rows = rounded(rows, digits)
    report = {"title": title, "command": command, "machine": machine(), "rows": rows, "notes": notes}
    if images:
        report["images"] = list(images)
    print(f"\n{title}\n\n{tables(rows)}\n{notes}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n")
    (RESULTS / f"{name}.md").write_text(render(report))


def rounded(values: Any, digits: int) -> Any:
    """Rows, or tables of them, with all floats rounded to some significant digits."""
    if isinstance(values, dict):
        return {key: rounded(value, digits) for key, value in values.items()}
    if isinstance(values, list):
        return [rounded(value, digits) for value in values]
    return float(f"{values:.{digits}g}") if isinstance(values, float) else values


def write_lines(path: Path, head: dict[str, Any], rows: Sequence[dict[str, Any]], page: str) -> None:
    """Writes PATH.json, with one row per line, and PATH.md.

    Args:
        path: without suffix.
        head: the other keys of the JSON.
        rows: the lines.
        page: the Markdown.
    """
    lines = ",\n".join(json.dumps(row) for row in rows)
    with atomic_file(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(head, indent=1)[:-2] + f',\n "rows": [\n{lines}\n ]\n}}\n', encoding="utf-8")
    with atomic_file(path.with_suffix(".md")) as temporary:
        temporary.write_text(page, encoding="utf-8")


def tables(rows: Any) -> str:
    """One table, or several under their titles, as Markdown."""
    parts = rows if isinstance(rows, dict) else {"": rows}
    return "\n\n".join((f"## {head}\n\n" if head else "") + markdown_table(part) for head, part in parts.items())


def render(report: dict[str, Any]) -> str:
    """The Markdown page of a report that `write` made."""
    text = (
        f"# {report['title']}\n\n`{report['command']}`\n\n{describe(report['machine'])}\n\n{tables(report['rows'])}\n"
    )
    text += "".join(f"\n![{image}]({image})\n" for image in report.get("images", ()))
    return text + (f"\n{report['notes']}\n" if report["notes"] else "")


def render_again(names: Sequence[str]) -> None:
    """Writes NAME.md from NAME.json; reports that other scripts format are skipped."""
    for path in [RESULTS / f"{name}.json" for name in names] or sorted(RESULTS.glob("*.json")):
        report = json.loads(path.read_text())
        if {"title", "command", "machine", "rows", "notes"} == set(report) - {"images"}:
            path.with_suffix(".md").write_text(render(report))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="stems of files in results/ (default: all)")
    render_again(parser.parse_args().names)
