"""Tables of benchmark rows: means over clips, agreement of nearest neighbors, comparison of two runs."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch

from fewtokens.core import files
from fewtokens.core.budget import Budget, budget_order, budget_text
from fewtokens.core.grid import Grid
from fewtokens.core.keys import current_keys, delta_key, heading
from fewtokens.evaluation.bench import FULL
from fewtokens.evaluation.fidelity import neighbor_agreement

# Measured times, as the mean over clips of the medians of the rows; other columns are means of exact values.
_TIMES = ("method_ms", "total_ms")
_MEANS = (
    "tokens", "retention", "cosine", "relative_error", "rare_cosine", "psnr_db", "j_and_f", "j", "f", "j_and_f_880",
    "j_880", "f_880", "method_ms", "method_ms_spread", "method_ms_min", "method_ms_max", "total_ms", "total_ms_spread",
    "total_ms_min", "total_ms_max", "encoder_gflops", "prefill_gflops", "peak_mib",
)  # fmt: skip
# Columns of a summary that no table shows by themselves: they identify a line or belong to another column.
UNSHOWN = {
    "keep", "label", "over_budget", "retention", "clips", "method_ms_spread", "method_ms_min", "method_ms_max",
    "total_ms_spread", "total_ms_min", "total_ms_max",
}  # fmt: skip
# What a column means, its unit, and which direction is better.
NOTES = {
    "standing": (
        "best has the best {measure} at this budget; front is on the Pareto front of {measure} and {cost}, where no "
        "other row within the budget is both better and {cheaper}"
    ),
    "tokens": "tokens that remain of a clip. Lower is cheaper",
    "cosine": (
        "cosine similarity between reconstructed and full features, mean over cells, from -1 (opposite) to 1 (equal). "
        "Higher is better"
    ),
    "relative_error": (
        "norm of the difference between reconstructed and full features, divided by the norm of the full features. "
        "0 is exact. Lower is better"
    ),
    "rare_cosine": "cosine in the 5 % of cells least similar to the mean of their frame, -1 to 1. Higher is better",
    "psnr_db": "PSNR in dB of frames decoded from the reconstructed features. Higher is better",
    "j_and_f": "mean of J and F, 0 to 1: label propagation from the first mask, at the native size. Higher is better",
    "j": "overlap of predicted and true masks, 0 to 1. Higher is better",
    "f": "accuracy of mask boundaries, 0 to 1. Higher is better",
    "j_and_f_880": "J&F at 480x880. J 880 and F 880 are its parts. Higher is better",
    "method_ms": (
        "time of the method alone, in ms. Lower is better. Empty for methods that run before or inside the encoder "
        "(such as rlt): their time is included in total ms"
    ),
    "total_ms": "time from frames to tokens, encoder included, in ms. Lower is better",
    "encoder_gflops": "operations of the encoder, in 1e9, 2 per multiply-accumulate. Lower is better",
    "prefill_gflops": "operations of Qwen2-7B to read the tokens, in 1e9. Lower is better",
    "peak_mib": "peak memory of the method, in MiB. Lower is better",
    "neighbor_agreement": (
        "fraction of clips whose most similar other clip is the same as with all tokens. Higher is better"
    ),
    "rank_correlation": (
        "rank correlation of a clip's similarities to the other clips, with few and with all tokens, -1 to 1. "
        "Higher is better"
    ),
}
# Columns in which lower is better; in the others higher is better.
_LOWER_IS_BETTER = {
    "tokens", "retention", "relative_error", "method_ms", "total_ms", "encoder_gflops", "prefill_gflops", "peak_mib",
}  # fmt: skip
# Columns in which two runs are compared.
_COMPARED = ("cosine", "relative_error", "rare_cosine", "psnr_db", "j_and_f", "tokens", *_TIMES, "peak_mib")


def summarize(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Averages rows over clips; returns one line per budget and method in the order of the rows, all tokens first.

    "neighbor_agreement" is the fraction of clips with the same nearest other clip as with all tokens,
    "rank_correlation" the mean rank correlation of the similarities to other clips; a clip's vector is the unweighted
    mean of its tokens. Both need at least three clips.

    "label" is the method, followed by "+ tome" if tome was added to reach the budget, and the number of clips if it
    failed on others. "over_budget" is the number of clips with more tokens than the budget. The mean PSNR is that of
    the clips that are not exact, if there are any.
    """
    full = {row["clip"]: row["vector"] for row in rows if row["method"] == FULL}
    groups: dict[tuple[tuple[int, float], str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((budget_order(row["keep"]), row["method"]), []).append(row)
    order = sorted(groups, key=lambda key: (key[1] != FULL, key[0]))
    lines = []
    for budget, method in order:
        part = groups[budget, method]
        line: dict[str, Any] = {
            "keep": part[0]["keep"], "method": method, "label": _label(method, part), "clips": len(part),
            "over_budget": sum(map(is_over_budget, part)),
        }  # fmt: skip
        for name in _MEANS:
            values = [row[name] for row in part if row.get(name) is not None]
            if name == "psnr_db":  # infinite for exact clips
                values = [value for value in values if math.isfinite(value)] or values
            if any(name in row for row in rows):
                line[name] = statistics.fmean(values) if values else None
        shared = [row for row in part if row["clip"] in full]
        if len(shared) >= 3:
            few = torch.tensor([row["vector"] for row in shared])
            line["neighbor_agreement"], line["rank_correlation"] = neighbor_agreement(
                few, torch.tensor([full[row["clip"]] for row in shared])
            )
        lines.append(line)
    clips = max((line["clips"] for line in lines), default=0)
    for line in lines:
        if line["clips"] < clips:
            line["label"] += f" ({line['clips']} of {clips} clips)"
    return lines


def rank(summary: Sequence[dict[str, Any]], measure: str) -> list[dict[str, Any]]:
    """Sorts the lines of each budget by a measure, the best on top, and adds their "standing".

    It is "best" for the first line; "front" for those on the Pareto front of the measure and total_ms (tokens if there
    are no times), for which no other line of the budget is at least as good in both and better in one; else "". Lines
    over the budget, or of fewer clips than others, come last and have none. The order of budgets remains, with all
    tokens first.

    Args:
        summary: lines of `summarize`.
        measure: a key of the lines; those without it follow those that have it.
    """
    sign = 1 if measure in _LOWER_IS_BETTER else -1
    price = "total_ms" if has_times(summary) else "tokens"

    def cost(line: dict[str, Any]) -> float:
        value = line.get(measure)
        return math.inf if value is None else sign * value

    clips = max((line.get("clips", 0) for line in summary), default=0)

    def excluded(line: dict[str, Any]) -> bool:
        return bool(line.get("over_budget")) or line.get("clips", clips) < clips

    ranked = [{**line, "standing": ""} for line in summary if line["method"] == FULL]
    for _, part in by_budget(summary):
        lines = [dict(line) for line in part]
        lines.sort(key=lambda line: (excluded(line), cost(line), line[price]))
        points = [(cost(line), line[price]) for line in lines if not excluded(line) and cost(line) < math.inf]
        for line in lines:
            own = (cost(line), line[price])
            front = own in points and not any(a <= own[0] and b <= own[1] and (a, b) != own for a, b in points)
            line["standing"] = "front" if front and not excluded(line) else ""
        if points:
            lines[0]["standing"] = "best"
        ranked += lines
    # The mark stands next to the name.
    return [{"keep": line["keep"], "method": line["method"], "standing": line["standing"]} | line for line in ranked]


def by_budget(summary: Sequence[dict[str, Any]]) -> list[tuple[float | int | str, list[dict[str, Any]]]]:
    """Returns the lines of each budget, without those of all tokens."""
    parts: dict[tuple[int, float], list[dict[str, Any]]] = {}
    for line in summary:
        if line["method"] != FULL:
            parts.setdefault(budget_order(line["keep"]), []).append(line)
    return [(part[0]["keep"], part) for part in parts.values()]


def has_times(summary: Sequence[dict[str, Any]]) -> bool:
    """Whether times were measured, which jobs of `fewtokens bench` do not."""
    return any(line.get("total_ms") is not None for line in summary)


def has_fallback(row: dict[str, Any]) -> bool:
    """Whether tome was added because the method cannot reach the budget."""
    return row["method"] != FULL and row.get("spec", "").count("|") > row["method"].count("|")


def is_over_budget(row: dict[str, Any]) -> bool:
    """Whether a row of one clip has more tokens than its budget."""
    if row["method"] == FULL or not {"tokens", "cells"} <= row.keys():
        return False
    frames = row.get("frames", 1)
    frames = 1 if row["cells"] % frames else frames
    # With tubelets of n frames a row of the grid is n of these, so that "8/frame" is not exceeded by up to n times.
    return int(row["tokens"]) > Budget.parse(row["keep"]).count(Grid(frames, 1, row["cells"] // frames))


def label_row(row: dict[str, Any]) -> dict[str, Any]:
    """Adds "label" and "over_budget" to a row of one clip, after its method."""
    identity = {name: row[name] for name in ("clip", "method") if name in row}
    return identity | {"label": _label(row["method"], [row]), "over_budget": is_over_budget(row)} | row


def _label(method: str, rows: Sequence[dict[str, Any]]) -> str:
    chained = sum(map(has_fallback, rows))
    if not chained:
        return method
    return f"{method} + tome" + ("" if chained == len(rows) else f" ({chained} of {len(rows)} clips)")


def label_of(line: dict[str, Any]) -> str:
    """The display name of a line; lines of earlier versions have only the method."""
    return str(line.get("label", line["method"]))


def describe_columns(summary: Sequence[dict[str, Any]], *, ranges: bool = True, measure: str = "cosine") -> list[str]:
    """One sentence or two about each column of the summary that has values, and about the marks in the tables.

    Args:
        measure: the one by which `rank` sorted the summary.
        ranges: the tables show the range of times next to each median.
    """
    notes = []
    names = [name for name in column_names(summary) if any(line.get(name) is not None for line in summary)]
    if any(label_of(line) != line["method"] for line in summary):
        notes.append("+ tome: the method cannot reach this budget, so tome merged its tokens down to it.")
    if any(line.get("over_budget") for line in summary):
        notes.append("over budget: the method returned more tokens than requested. Do not rank this row.")
    timed = has_times(summary)
    cost, cheaper = (heading("total_ms"), "faster") if timed else ("tokens", "of fewer tokens")
    marks = {"{measure}": heading(measure), "{cost}": cost, "{cheaper}": cheaper}
    for name in (name for name in names if name in NOTES):
        text = NOTES[name]
        for mark, value in marks.items():
            text = text.replace(mark, value)
        notes.append(f"{heading(name)}: {text}.")
    if timed and not ranges:
        notes.append("Times are medians over the runs.")
    elif any(line["total_ms_min"] < line["total_ms_max"] for line in summary if line.get("total_ms_min") is not None):
        notes.append("Times are medians over the runs, with the fastest and the slowest run in parentheses.")
    elif "total_ms_spread" in names and "total_ms_min" not in names:
        notes.append("Times are medians over the runs; ± is half the range from the fastest to the slowest run.")
    if any(line["clips"] > 1 for line in summary if "clips" in line):
        notes.append("Each number is the mean over clips.")
    return notes


def best_methods(
    summary: Sequence[dict[str, Any]], measure: str, number: int = 5
) -> dict[float | int | str, list[str]]:
    """Returns the labels of the `number` best methods by a measure at each budget, without those over the budget."""
    methods: dict[float | int | str, list[str]] = {}
    for keep, part in by_budget(summary):
        lines = [row for row in part if row.get(measure) is not None and not row.get("over_budget")]
        lines.sort(key=lambda row: row[measure], reverse=measure not in _LOWER_IS_BETTER)
        methods[keep] = [label_of(row) for row in lines[:number]]
    return methods


def column_names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the names of all columns in order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Formats rows as CSV; missing values are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, column_names(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_markdown(summary: Sequence[dict[str, Any]]) -> str:
    """Formats a summary as Markdown, one table per budget."""
    parts = []
    names = [
        name
        for name in column_names(summary)
        if name not in UNSHOWN and any(line.get(name) is not None for line in summary)
    ]
    full = [line for line in summary if line["method"] == FULL]
    for keep, part in by_budget(summary):
        lines = [*full, *part]
        title = f"## {budget_text(keep)}" + (" of the tokens" if isinstance(keep, float) else "")
        text = {"method", "standing"}
        table = [
            "| " + " | ".join(map(heading, names)) + " |",
            "|" + "".join("---|" if name in text else "---:|" for name in names),
        ]
        table += ["| " + " | ".join(_cell(name, line) for name in names) + " |" for line in lines]
        parts.append(title + "\n\n" + "\n".join(table))
    return "\n\n".join(parts) + "\n"


def _cell(name: str, line: dict[str, Any]) -> str:
    value = line.get(name)
    if value is None:
        return "-"
    if name == "method":
        return f"`{label_of(line)}`"
    if name == "standing":
        return f"**{value}**" if value == "best" else str(value)
    if name == "tokens" and line.get("over_budget"):
        return f"{value:.0f} (over budget)"
    if name == "psnr_db" and value == math.inf:
        return "exact"
    if (fastest := line.get(f"{name}_min")) is not None:
        slowest = line[f"{name}_max"]
        return f"{value:.1f} ({fastest:.1f} to {slowest:.1f})" if fastest < slowest else f"{value:.1f}"
    if f"{name}_spread" in line:
        spread = line[f"{name}_spread"]
        return f"{value:.1f} ± {spread:.1f}" if spread is not None else f"{value:.1f}"
    if isinstance(value, int) or name == "tokens":
        return f"{value:.0f}"
    return f"{value:.4f}" if abs(value) <= 1 else f"{value:.1f}"


def compare_runs(before: Path, after: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Compares two results at the methods and budgets that both contain.

    Args:
        before, after: results.json of two runs.

    Returns:
        One line per method and budget, and the differences between the runs themselves: settings, clips, repeats,
        machine. With other clips or on another machine, scores or times also differ for reasons other than the method.

    Raises:
        ValueError: a file is missing or is not a results.json, or the runs share no method at the same budget.
    """
    runs = read_results(before), read_results(after)
    first, second = (
        {(budget_order(line["keep"]), line["method"]): dict(line) for line in run["summary"]} for run in runs
    )
    lines = []
    for key in [key for key in first if key in second]:
        line: dict[str, Any] = {"keep": second[key]["keep"], "method": key[1], "label": label_of(second[key])}
        for name in _COMPARED:
            old, new = first[key].get(name), second[key].get(name)
            if isinstance(old, int | float) and isinstance(new, int | float) and math.isfinite(old - new):
                line[name] = new
                line[delta_key(name)] = new - old
        lines.append(line)
    if not lines:
        raise ValueError(f"{before} and {after} have no method at the same budget in common")
    return lines, _differences(*runs)


def _differences(before: Results, after: Results) -> list[str]:
    """Describes the differences between two runs other than their scores."""
    differences = []
    settings = (before.get("settings", {}), after.get("settings", {}))
    machines = (before.get("machine", {}), after.get("machine", {}))
    for old, new in (settings, machines):
        for name in dict.fromkeys([*old, *new]):
            if old.get(name) != new.get(name):
                differences.append(f"{name}: {json.dumps(old.get(name))} and {json.dumps(new.get(name))}")
    for label, key in (("clips", "clip"), ("repeats", "repeats")):
        old_values, new_values = ({str(row.get(key)) for row in run["rows"]} for run in (before, after))
        if old_values != new_values:
            differences.append(f"{label}: {_join(old_values)} and {_join(new_values)}")
    first, second = before.get("sources", {}), after.get("sources", {})
    changed = [name for name in first if name in second and _identity(first[name]) != _identity(second[name])]
    if changed:
        differences.append(f"different files with the same name: {_join(changed)}")
    return differences


def _identity(source: dict[str, Any]) -> tuple[Any, Any]:
    return source.get("bytes"), source.get("mtime_ns")


def _join(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class _Line(TypedDict):
    keep: float
    method: str


class _Optional(TypedDict, total=False):
    settings: dict[str, Any]
    machine: dict[str, Any]
    sources: dict[str, dict[str, Any]]


class Results(_Optional):
    """The content of a results.json; files of earlier versions have no machine and no sources."""

    summary: list[_Line]
    rows: list[dict[str, Any]]


def read_results(path: Path) -> Results:
    """Reads a results.json, with the keys of earlier versions under their current names.

    Raises:
        ValueError: the file is missing, cannot be read, or is not a results.json.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: cannot be read (no such file)")
    try:
        results = files.read_json(path, Results)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: not a results.json of fewtokens bench ({reason})") from None
    for part in ("settings", "summary", "rows"):
        if part in results:
            results[part] = current_keys(results[part])
    return results
