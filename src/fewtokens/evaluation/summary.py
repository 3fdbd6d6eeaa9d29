"""Rows of a bench to tables: means over clips, agreement of neighbors, two runs side by side."""

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
from fewtokens.core.keys import change, current_keys, heading
from fewtokens.evaluation.bench import FULL
from fewtokens.evaluation.fidelity import neighbour_agreement

# Columns of measured time: the mean over clips of each row's median; the rest are means of exact values.
_TIMES = ("method_ms", "total_ms")
_MEANS = (
    "tokens", "retention", "cosine", "relative_error", "rare_cosine", "psnr_db", "j_and_f", "j", "f", "j_and_f_880",
    "j_880", "f_880", "method_ms", "method_ms_spread", "total_ms", "total_ms_spread", "encoder_gflops",
    "prefill_gflops", "peak_mib",
)  # fmt: skip
# Where less is better; of the others more is.
_LESS = {
    "tokens", "retention", "relative_error", "method_ms", "total_ms", "encoder_gflops", "prefill_gflops", "peak_mib",
}  # fmt: skip
# What two runs are compared in.
_COMPARED = ("cosine", "relative_error", "rare_cosine", "psnr_db", "j_and_f", "tokens", *_TIMES, "peak_mib")


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each budget and method: means over the clips, in the order of the rows; everything kept comes first.

    "neighbor_agreement" is the share of clips whose nearest other clip is found by few tokens too, "rank_correlation"
    the mean rank correlation of the likenesses; a clip's vector is the plain mean of its tokens. Both need three clips
    or more.
    """
    full = {row["clip"]: row["vector"] for row in rows if row["method"] == FULL}
    groups: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["keep"], row["method"]), []).append(row)
    order = sorted(groups, key=lambda key: (key[1] != FULL, isinstance(key[0], int), -key[0]))
    found = []
    for keep, method in order:
        part = groups[keep, method]
        line: dict[str, Any] = {"keep": keep, "method": method, "clips": len(part)}
        for name in _MEANS:
            values = [row[name] for row in part if row.get(name) is not None]
            if any(name in row for row in rows):
                line[name] = statistics.fmean(values) if values else None
        together = [row for row in part if row["clip"] in full]
        if len(together) >= 3:
            few = torch.tensor([row["vector"] for row in together])
            line["neighbor_agreement"], line["rank_correlation"] = neighbour_agreement(
                few, torch.tensor([full[row["clip"]] for row in together])
            )
        found.append(line)
    return found


def best(summary: Sequence[dict[str, Any]], measure: str, number: int = 5) -> dict[float | int, list[str]]:
    """The `number` best methods by a measure at each budget."""
    found: dict[float | int, list[str]] = {}
    for keep in dict.fromkeys(line["keep"] for line in summary if line["method"] != FULL):
        lines = [
            row for row in summary if row["keep"] == keep and row["method"] != FULL and row.get(measure) is not None
        ]
        lines.sort(key=lambda row: row[measure], reverse=measure not in _LESS)
        found[keep] = [row["method"] for row in lines[:number]]
    return found


def columns_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """All columns, in the order in which they first appear."""
    return list(dict.fromkeys(name for row in rows for name in row))


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as CSV; what a row lacks is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns_of(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_markdown(summary: Sequence[dict[str, Any]]) -> str:
    """A table for each budget."""
    parts = []
    names = [
        name
        for name in columns_of(summary)
        if name not in ("keep", "retention", "clips", "method_ms_spread", "total_ms_spread")
    ]
    full = [line for line in summary if line["method"] == FULL]
    for keep in dict.fromkeys(line["keep"] for line in summary if line["method"] != FULL):
        lines = [*full, *(line for line in summary if line["keep"] == keep and line["method"] != FULL)]
        head = f"## {100 * keep:g} % of the tokens" if isinstance(keep, float) else f"## {keep} tokens"
        table = ["| " + " | ".join(map(heading, names)) + " |", "|---|" + "---:|" * (len(names) - 1)]
        table += ["| " + " | ".join(_text(name, line) for name in names) + " |" for line in lines]
        parts.append(head + "\n\n" + "\n".join(table))
    return "\n\n".join(parts) + "\n"


def _text(name: str, line: dict[str, Any]) -> str:
    value = line.get(name)
    if value is None:
        return "-"
    if name == "method":
        return f"`{value}`"
    if f"{name}_spread" in line:
        spread = line[f"{name}_spread"]
        return f"{value:.1f} ± {spread:.1f}" if spread is not None else f"{value:.1f}"
    if isinstance(value, int) or name == "tokens":
        return f"{value:.0f}"
    return f"{value:.4f}" if abs(value) <= 1 else f"{value:.1f}"


def changes(before: Path, after: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """What differs between two results, method by method and budget by budget, only what both have.

    Args:
        before, after: results.json of two runs.

    Returns:
        A line for each method and budget, and what makes the runs unlike one another beside the methods: settings,
        clips, repeats, machine. Means over other clips or times of another machine are no change of a method.

    Raises:
        ValueError: a file that is missing or is none, or two runs that share nothing.
    """
    runs = read_results(before), read_results(after)
    first, second = ({(line["keep"], line["method"]): line for line in run["summary"]} for run in runs)
    found = []
    for key in [key for key in first if key in second]:
        line: dict[str, Any] = {"keep": key[0], "method": key[1]}
        for name in _COMPARED:
            old, new = first[key].get(name), second[key].get(name)
            if isinstance(old, int | float) and isinstance(new, int | float) and math.isfinite(old - new):
                line[name] = new
                line[change(name)] = new - old
        found.append(line)
    if not found:
        raise ValueError(f"{before} and {after} share no method at the same budget")
    return found, _unlike(*runs)


def _unlike(before: Results, after: Results) -> list[str]:
    """What two runs do not have in common, in words."""
    said = []
    settings = (before.get("settings", {}), after.get("settings", {}))
    machines = (before.get("machine", {}), after.get("machine", {}))
    for old, new in (settings, machines):
        for name in dict.fromkeys([*old, *new]):
            if old.get(name) != new.get(name):
                said.append(f"{name}: {json.dumps(old.get(name))} and {json.dumps(new.get(name))}")
    for word, key in (("clips", "clip"), ("repeats", "repeats")):
        one, other = ({str(row.get(key)) for row in run["rows"]} for run in (before, after))
        if one != other:
            said.append(f"{word}: {_some(one)} and {_some(other)}")
    first, second = before.get("sources", {}), after.get("sources", {})
    changed = [name for name in first if name in second and _what(first[name]) != _what(second[name])]
    if changed:
        said.append(f"other files behind the same names: {_some(changed)}")
    return said


def _what(source: dict[str, Any]) -> tuple[Any, Any]:
    return source.get("bytes"), source.get("mtime_ns")


def _some(names: Iterable[str]) -> str:
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
    """A results.json; earlier versions noted neither machine nor sources."""

    summary: list[_Line]
    rows: list[dict[str, Any]]


def read_results(path: Path) -> Results:
    """A results.json.

    Raises:
        ValueError: says what is wrong with the file.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: cannot be read (no such file)")
    try:
        results = files.read_json(path, Results)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: not the results.json of fewtokens bench ({reason})") from None
    for part in ("settings", "summary", "rows"):
        if part in results:
            results[part] = current_keys(results[part])
    return results
