"""Plots of a bench: what is kept against tokens and against time, the plain baselines in every one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewtokens.files import whole_file

_BASELINE = ("#1b1b1b", "#5a5a5a", "#8a8a8a", "#6d4c41", "#37474f")
_COLOURS = (
    "#2458a6", "#d1495b", "#2e8b57", "#e08e0b", "#7b3fa0", "#0a9396",
    "#b5179e", "#6a994e", "#8d6e63", "#00b4d8",
)  # fmt: skip
# Of the methods after the encoder, and of those before or inside it, so many are named.
_AFTER, _WITHIN = 6, 4
_MARKS = ("o", "s", "^", "D", "v")


def draw_trade_off(
    summary: Sequence[dict[str, Any]], measure: str, path: Path, *, baselines: Sequence[str], full: str
) -> Path | None:
    """One measure against tokens and against milliseconds; None where no row has it or matplotlib is missing.

    The five baselines are named, and the best others by the mean over budgets: six after the encoder, four before or
    inside it. The rest is grey.

    Args:
        summary: rows with "keep", "method", "tokens", "total ms" and the measure.
        measure: more is better.
        path: of the PNG.
        baselines: names of the methods that every plot shows.
        full: name of the row that keeps everything.
    """
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    lines: dict[str, list[dict[str, Any]]] = {}
    for row in summary:
        if row.get(measure) is not None and row["method"] != full:
            lines.setdefault(row["method"], []).append(row)
    if not lines:
        return None
    whole = next((row for row in summary if row["method"] == full and row.get(measure) is not None), None)
    others = sorted(
        (name for name in lines if name not in baselines),
        key=lambda name: -sum(row[measure] for row in lines[name]) / len(lines[name]),
    )
    within = [name for name in others if all(row.get("method ms") is None for row in lines[name])]
    after = [name for name in others if name not in within]
    named = [*after[:_AFTER], *within[:_WITHIN]]
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.2), sharey=True, layout="constrained")
    for axis, x, label in zip(
        axes, ("tokens", "total ms"), ("tokens of a clip (mean)", "milliseconds, frames to tokens (mean)"), strict=True
    ):
        for name in (name for name in others if name not in named):
            _line(axis, lines[name], x, measure, color="#d3d6dc", linewidth=1, zorder=1)
        for number, name in enumerate(n for n in baselines if n in lines):
            style = {"color": _BASELINE[number % 5], "linestyle": "--", "marker": _MARKS[number % 5], "markersize": 5}
            _line(axis, lines[name], x, measure, label=name, linewidth=1.3, zorder=3, **style)
        for number, name in enumerate(named):
            style = {"color": _COLOURS[number], "marker": ".", "markersize": 8}
            _line(axis, lines[name], x, measure, label=name, linewidth=1.8, zorder=2, **style)
        if whole is not None:
            axis.axhline(whole[measure], color="#1b1b1b", linewidth=0.8, linestyle=":")
            axis.annotate("all tokens", (0.01, whole[measure]), xycoords=("axes fraction", "data"), fontsize=8)
        axis.set(xscale="log", xlabel=label)
        axis.grid(alpha=0.25, which="both")
    axes[0].set(ylabel=measure)
    axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)
    return path


def _line(axis: Any, rows: Sequence[dict[str, Any]], x: str, y: str, **style: Any) -> None:
    points = sorted((row[x], row[y]) for row in rows)
    axis.plot(*zip(*points, strict=True), **style)
