"""What `fewtokens bench` writes and prints at its end: tables, plots and the page."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from fewtokens.cli.console import log, note, out
from fewtokens.cli.errors import check_exists
from fewtokens.cli.tables import print_json, table
from fewtokens.core.budget import budget_text
from fewtokens.core.keys import delta_key, with_headings

if TYPE_CHECKING:
    from fewtokens.evaluation.bench import EncodedItem

# Columns of the tables in the terminal, which has no room for all.
_SHORT = ("method", "standing", "tokens", "cosine", "rare_cosine", "j_and_f", "psnr_db", "total_ms")
# Columns of a comparison in the terminal.
_CHANGED = ("keep", "method", *map(delta_key, ("cosine", "j_and_f", "total_ms")))


def count(number: int, noun: str) -> str:
    """Returns a number with its noun: "1 clip", "2 clips"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def describe_machine(device: Any) -> dict[str, Any]:
    """Returns the machine and library versions, on which times depend."""
    import os
    import platform

    import torch

    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "torch": str(torch.__version__),
    }


def write_report(
    target: Path, header: dict[str, Any], rows: list[dict[str, Any]], images: dict[str, Any], measure: str
) -> list[dict[str, Any]]:
    """Writes tables, plots and the page of a finished run; returns the summary."""
    from fewtokens.core import registry
    from fewtokens.core.files import write_text
    from fewtokens.evaluation.bench import FULL, unpack_assignment
    from fewtokens.evaluation.summary import (
        as_csv,
        as_markdown,
        describe_columns,
        has_times,
        label_row,
        rank,
        summarize,
    )
    from fewtokens.show.bench_page import write_bench_page
    from fewtokens.show.plots import draw_trade_off

    summary = rank(summarize(rows), measure)
    scalars = [
        {name: value for name, value in label_row(row).items() if name not in ("vector", "assignment", "grid")}
        for row in rows
    ]
    settings = header["settings"]
    encoder = settings["encoder"]["id"]
    clips = len({row["clip"] for row in rows})
    # A video can be shorter than --frames; rows of earlier versions have no number of frames.
    counts = {row.get("frames") for row in rows}
    frames_text = (
        "as many frames as the selector chose" if settings["frames"] is None else f"up to {settings['frames']} frames"
    )
    if len(counts) == 1 and (frames := counts.pop()) is not None:
        frames_text = count(frames, "frame")
    heading = f"Encoder {encoder}, {count(clips, 'clip')} of {frames_text}."
    notes = describe_columns(summary, measure=measure)
    about = " ".join([heading, *notes])
    listed = "".join(f"- {line}\n" for line in notes)
    texts = {
        "results.json": json.dumps({**header, "about": about, "summary": summary, "rows": scalars}) + "\n",
        "results.csv": as_csv(scalars),
        "results.md": f"# fewtokens bench\n\n{heading}\n\n{listed}\n{as_markdown(summary)}",
    }
    for name, text in texts.items():
        write_text(target / name, text)
    plots = []
    if find_spec("matplotlib") is None:
        log.print("no plots: matplotlib is missing; install it with pip install 'fewtokens[show]'", highlight=False)
    plotted = ("cosine", "rare_cosine", "j_and_f", "psnr_db", "rank_correlation")
    caption = f"{count(clips, 'clip')} of {frames_text}, encoder {encoder}."
    for name in plotted:
        plot = draw_trade_off(
            summary, name, target / f"{name}.png", baselines=registry.BASELINES, full=FULL, caption=caption
        )
        plots += [] if plot is None else [plot]
    encoder_note = "encoder ms (tables of one clip): time of the encoder alone, in ms. Empty where method ms is."
    full = {row["clip"]: row for row in rows if row["method"] == FULL}
    frames = {name: (*clip, full[name]["grid"]) for name, clip in images.items() if "grid" in full.get(name, {})}
    write_bench_page(
        summary,
        [label_row(row) for row in rows],
        frames,
        plots,
        target / "index.html",
        title="fewtokens bench",
        note="\n".join(
            [
                heading,
                *describe_columns(summary, ranges=False, measure=measure),
                *([encoder_note] if has_times(summary) else []),
                "Images (choose a clip): a color is one token that stands for several cells; dark cells are dropped.",
            ]
        ),
        unpack=unpack_assignment,
    )
    return summary


def _shown(name: str, line: dict[str, Any]) -> Any:
    """The value of a column in the terminal."""
    from fewtokens.evaluation.summary import label_of

    value = line.get(name)
    if name == "method":
        return label_of(line)
    if name == "tokens":
        return f"{value:.0f}, over budget" if line.get("over_budget") else round(line["tokens"])
    return "exact" if name == "psnr_db" and value == float("inf") else value


def print_report(summary: list[dict[str, Any]], target: Path, measure: str) -> None:
    from fewtokens.evaluation.bench import FULL
    from fewtokens.evaluation.summary import by_budget, describe_columns

    full = [line for line in summary if line["method"] == FULL]
    for budget, part in by_budget(summary):
        lines = [*full, *part]
        names = [name for name in _SHORT if any(line.get(name) is not None for line in lines)]
        title = f"{budget_text(budget)} of the tokens" if isinstance(budget, float) else budget_text(budget)
        out.print(table(title, [with_headings({name: _shown(name, line) for name in names}) for line in lines]))
    for mark in ("standing", "+ tome", "over budget"):
        for text in describe_columns(summary, measure=measure):
            if text.startswith(mark):
                out.print(text, highlight=False, markup=False)
    out.print(f"[bold]Page[/bold]   {escape(str(target / 'index.html'))}", highlight=False)
    out.print(f"[bold]Tables[/bold] {escape(str(target / 'results.md'))}, .csv, .json", highlight=False)


def log_estimate(
    full: float, encoded: EncodedItem, specs: Sequence[str], left: Sequence[str], repeats: int, select: str | None
) -> None:
    """Prints about how long the remaining measurements take, from the first one, of all tokens.

    A method before or inside the encoder encodes the clip again for each run; the others are assumed to cost as much as
    the row of all tokens, most of which is the comparison with the full features. Clips are assumed to be similar.

    Args:
        full: seconds of the first measurement.
        left: the spec of each remaining one; on selected frames it starts with `select`.
    """
    from fewtokens.core import registry
    from fewtokens.evaluation.bench import FULL

    encoding = statistics.median(encoded.milliseconds) / 1000
    again = {spec for spec in specs if any(registry.get(name).stage != "tokens" for name, _ in registry.parse(spec))}
    again.add(FULL)
    seconds = sum(full + (repeats + 1) * encoding * (spec.removeprefix(f"{select} | ") in again) for spec in left)
    unit = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
    log.print(f"about {unit} for the remaining {len(left)} measurements", highlight=False)


def print_comparison(files: Sequence[Path], as_json: bool) -> None:
    """Prints what changed between two results.json files."""
    if len(files) != 2:
        raise ValueError(f"--compare requires two results.json files, got {len(files)}")
    check_exists(*files)
    from fewtokens.evaluation.summary import compare_runs

    lines, differences = compare_runs(*files)
    for difference in differences:
        note("difference:", difference)
    if as_json:
        print_json(lines)
        return
    names = [name for name in _CHANGED if any(name in line for line in lines)]
    rows = [with_headings({name: line.get("label" if name == "method" else name) for name in names}) for line in lines]
    out.print(table(f"{files[0]} → {files[1]}", rows))
