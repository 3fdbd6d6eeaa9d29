"""Plots of a bench: what is kept against tokens and against time, the plain baselines in every one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewtokens.core.files import whole_file
from fewtokens.core.keys import heading

_BASELINE = ("#1b1b1b", "#5a5a5a", "#8a8a8a", "#6d4c41", "#37474f")
_COLOURS = (
    "#2458a6", "#d1495b", "#2e8b57", "#e08e0b", "#7b3fa0", "#0a9396",
    "#b5179e", "#6a994e", "#8d6e63", "#00b4d8",
)  # fmt: skip
# Of the methods after the encoder, and of those before or inside it, so many are named.
_AFTER, _WITHIN = 6, 4
_MARKS = ("o", "s", "^", "D", "v")


Summary = Sequence[dict[str, Any]]


def styles_of(
    summary: Summary, measures: Sequence[str], *, baselines: Sequence[str], full: str
) -> dict[str, dict[str, Any]]:
    """How each method that some plot names is drawn: the same in all plots of a run, unlike all others."""
    styles: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(baselines):
        mark = _MARKS[number % len(_MARKS)]
        styles[name] = {"color": _BASELINE[number % len(_BASELINE)], "linestyle": "--", "marker": mark, "markersize": 5}
    others: list[str] = []
    for measure in measures:
        others += [name for name in _named(_lines(summary, measure, full), measure, baselines) if name not in others]
    for number, name in enumerate(others):
        mark = _MARKS[number // len(_COLOURS) % len(_MARKS)]
        styles[name] = {"color": _COLOURS[number % len(_COLOURS)], "marker": mark, "markersize": 4}
    return styles


def _lines(summary: Summary, measure: str, full: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of each method that have the measure, from few tokens to many, so that lines follow the budget."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(summary, key=lambda row: row["tokens"]):
        if row["method"] != full and _is_number(row.get(measure)):
            lines.setdefault(row["method"], []).append(row)
    return lines


def _is_number(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _named(lines: dict[str, list[dict[str, Any]]], measure: str, baselines: Sequence[str]) -> list[str]:
    """The methods that are named beside the baselines: the best after the encoder, and before or inside it."""
    others = sorted(
        (name for name in lines if name not in baselines),
        key=lambda name: -sum(row[measure] for row in lines[name]) / len(lines[name]),
    )
    within = [name for name in others if all(row.get("method_ms") is None for row in lines[name])]
    after = [name for name in others if name not in within]
    return [*after[:_AFTER], *within[:_WITHIN]]


def draw_trade_off(
    summary: Summary,
    measure: str,
    path: Path,
    styles: dict[str, dict[str, Any]],
    *,
    baselines: Sequence[str],
    full: str,
) -> Path | None:
    """One measure against tokens and against milliseconds; None where no row has it or matplotlib is missing.

    The five baselines are named, and the best others by the mean over budgets: six after the encoder, four before or
    inside it. The rest is grey. Lines follow the budget in both panels.

    Args:
        summary: rows with "keep", "method", "tokens", "total_ms" and the measure.
        measure: more is better.
        path: of the PNG.
        styles: of `styles_of`.
        baselines: names of the methods that every plot shows.
        full: name of the row that keeps everything.
    """
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    lines = _lines(summary, measure, full)
    if not lines:
        return None
    whole = next((row for row in summary if row["method"] == full and _is_number(row.get(measure))), None)
    named = [*(name for name in baselines if name in lines), *_named(lines, measure, baselines)]
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.2), sharey=True, layout="constrained")
    for axis, x, label in zip(
        axes, ("tokens", "total_ms"), ("tokens of a clip (mean)", "milliseconds, frames to tokens (mean)"), strict=True
    ):
        for name in (name for name in lines if name not in named):
            # A point of its own where there is only one budget.
            _line(axis, lines[name], x, measure, color="#c3c7cf", linewidth=1, marker=".", markersize=4, zorder=1)
        for name in named:
            width, order = (1.3, 3) if name in baselines else (1.8, 2)
            _line(axis, lines[name], x, measure, label=name, linewidth=width, zorder=order, **styles[name])
        if whole is not None:
            axis.axhline(whole[measure], color="#1b1b1b", linewidth=0.8, linestyle=":")
            axis.annotate("all tokens", (0.01, whole[measure]), xycoords=("axes fraction", "data"), fontsize=8)
        axis.set(xscale="log", xlabel=label)
        axis.grid(alpha=0.25, which="both")
    axes[0].set(ylabel=heading(measure))
    axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)
    return path


def _line(axis: Any, rows: Sequence[dict[str, Any]], x: str, y: str, **style: Any) -> None:
    axis.plot([row[x] for row in rows], [row[y] for row in rows], **style)
