"""Plots of a bench: quality against tokens and against time, with the baselines in every plot."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewtokens.core.budget import budget_text
from fewtokens.core.files import atomic_file
from fewtokens.core.keys import heading
from fewtokens.show.colors import method_styles

# The number of methods after the encoder, and before or inside it, that a plot names.
_AFTER, _WITHIN = 6, 4
# Title and label with unit of each measure.
_MEASURES = {
    "cosine": ("Features rebuilt from few tokens", "cosine similarity to all features (-1 to 1)"),
    "rare_cosine": ("Rare cells rebuilt from few tokens", "cosine similarity in the rarest 5 % of cells (-1 to 1)"),
    "j_and_f": ("Objects propagated with few tokens", "J&F of label propagation (0 to 1)"),
    "psnr_db": ("Frames rebuilt from few tokens", "PSNR (dB)"),
    "rank_correlation": ("Clips ranked by few tokens", "rank correlation with all tokens (-1 to 1)"),
}

Summary = Sequence[dict[str, Any]]


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
    """The methods that a plot names next to the baselines: the best after the encoder, and before or inside it."""
    others = sorted(
        (name for name in lines if name not in baselines),
        # Methods over the budget come last.
        key=lambda name: (
            any(row.get("over_budget") for row in lines[name]),
            -sum(row[measure] for row in lines[name]) / len(lines[name]),
        ),
    )
    within = [name for name in others if all(row.get("method_ms") is None for row in lines[name])]
    after = [name for name in others if name not in within]
    return [*after[:_AFTER], *within[:_WITHIN]]


def draw_trade_off(
    summary: Summary,
    measure: str,
    path: Path,
    *,
    baselines: Sequence[str],
    full: str,
    title: str = "",
    caption: str = "",
) -> Path | None:
    """Plots a measure against tokens and, if there are any, times; returns None if no row has it.

    Also returns None if matplotlib is missing.

    Tokens are drawn in percent of the full row. A plot names the baselines and the best other methods by their mean
    over budgets: six after the encoder, four before or inside it. The others are light gray. Lines follow the budget in
    both panels; with one budget, each method is a marker. The thin step is the Pareto front: no other row within its
    budget is better with as few tokens, or in as little time.

    Args:
        summary: rows with "keep", "method", "tokens", "total_ms" and the measure.
        measure: a key of the rows; higher is better.
        path: of the PNG; an SVG and a PDF of the same name are written next to it.
        baselines: names of the methods that every plot shows.
        full: name of the row that keeps all tokens.
        title: Defaults to one for the measure.
        caption: below the plot: clips, encoder. The budgets are added to it.
    """
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    lines = _lines(_with_percent(summary, full), measure, full)
    if not lines:
        return None
    reference = next((row for row in summary if row["method"] == full and _is_number(row.get(measure))), None)
    named = [*(name for name in baselines if name in lines), *_named(lines, measure, baselines)]
    # Styles of all rows, so that a name has the same style in the plots of all measures.
    styles = method_styles(row["method"] for row in summary)
    panels = {"percent": "tokens kept (% of all, mean)", "total_ms": "time from frames to tokens (ms, mean)"}
    if not any(_is_number(row.get("total_ms")) for row in summary):
        del panels["total_ms"]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(13 if len(panels) == 2 else 9, 5.6), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (x, label) in zip(axes[0], panels.items(), strict=True):
        for name in (name for name in lines if name not in named):
            # With one budget a line is a point, which needs a marker.
            _line(axis, lines[name], x, measure, color="#c3c7cf", linewidth=1, marker=".", markersize=4, zorder=1)
        for name in named:
            width, order = (1.3, 3) if name in baselines else (1.8, 2)
            _line(
                axis,
                lines[name],
                x,
                measure,
                label=_legend(name, lines[name]),
                linewidth=width,
                zorder=order,
                **styles[name],
            )
        front = _front([row for rows in lines.values() for row in rows if not row.get("over_budget")], x, measure)
        axis.step(
            [row[x] for row in front], [row[measure] for row in front],
            where="post", color="#1b1b1b", linewidth=0.7, alpha=0.6, zorder=0, label="Pareto front",
        )  # fmt: skip
        if reference is not None:
            axis.axhline(reference[measure], color="#1b1b1b", linewidth=0.8, linestyle=":")
            axis.annotate("all tokens", (0.01, reference[measure]), xycoords=("axes fraction", "data"), fontsize=8)
        axis.set(xscale="log", xlabel=label)
        pad_log_axis(axis, [row[x] for rows in lines.values() for row in rows])
        axis.grid(alpha=0.25, which="both")
    default, unit = _MEASURES.get(measure, (heading(measure), heading(measure)))
    axes[0, 0].set(ylabel=unit)
    axes[0, -1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    notes = _notes(summary, full, lines, named, baselines)
    save_plot(figure, path, title=title or default, caption=f"{caption} {notes}".strip())
    plt.close(figure)
    return path


def save_plot(figure: Any, path: Path, *, title: str, caption: str) -> Path:
    """Adds a title and a caption to a matplotlib figure, and saves it as PNG and, next to it, as SVG and PDF.

    Args:
        figure: with `layout="constrained"`, which makes room for both.
        path: of the PNG.
        title: what the plot compares.
        caption: below the axes: method, budget, clips.

    Returns:
        The path of the PNG.
    """
    import matplotlib

    columns = round(16 * figure.get_figwidth())
    figure.suptitle("\n".join(textwrap.wrap(title, round(columns * 0.5))), fontsize=12)
    if caption:
        figure.supxlabel("\n".join(textwrap.wrap(caption, columns)), fontsize=8, color="#696e7a", x=0.01, ha="left")
    # Equal figures are equal files: no date, ids that do not change.
    with matplotlib.rc_context({"svg.hashsalt": "fewtokens"}):
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110)
        with atomic_file(path.with_suffix(".svg")) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
        with atomic_file(path.with_suffix(".pdf")) as temporary:
            figure.savefig(temporary, format="pdf", metadata={"CreationDate": None})
    return path


def _with_percent(summary: Summary, full: str) -> list[dict[str, Any]]:
    """Rows with "percent", the tokens in percent of those of the full row, or of the budget if there is no full row."""
    total = next((row["tokens"] for row in summary if row["method"] == full), None)
    return [row | {"percent": 100 * (row["tokens"] / total if total else row["retention"])} for row in summary]


def pad_log_axis(axis: Any, values: Sequence[float]) -> None:
    """Limits and ticks of a logarithmic axis: at least a factor of four wide, with numbers that are written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    positive = [value for value in values if value > 0]  # others have no place on this axis
    if not positive:
        return
    low, high = min(positive), max(positive)
    factor = max(1.25, 2 / math.sqrt(high / low))
    axis.set_xlim(low / factor, high * factor)
    steps = (1, 2, 5) if high / low < 200 else (1,)
    axis.xaxis.set_major_locator(LogLocator(subs=steps))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _front(rows: Summary, x: str, y: str) -> list[dict[str, Any]]:
    """The rows that no other row exceeds in y with as little x, from little to much."""
    front: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row[x], -row[y])):
        if not front or row[y] > front[-1][y]:
            front.append(row)
    return front


def _legend(name: str, rows: Summary) -> str:
    """The name of a method, with the budgets at which tome was added or that it exceeded."""
    chained = [row["keep"] for row in rows if row.get("label", name) != name]
    over = [row["keep"] for row in rows if row.get("over_budget")]
    marks = [f"{mark} at {_join(keeps)}" for mark, keeps in (("+ tome", chained), ("over budget", over)) if keeps]
    return f"{name} ({'; '.join(marks)})" if marks else name


def _join(keeps: Sequence[float | int | str]) -> str:
    if all(isinstance(keep, float) for keep in keeps):
        return ", ".join(budget_text(keep).removesuffix(" %") for keep in keeps) + " %"
    return ", ".join(map(budget_text, keeps))


def _notes(summary: Summary, full: str, lines: dict[str, Any], named: Sequence[str], baselines: Sequence[str]) -> str:
    """The budgets of the rows, and what gray means."""
    texts = sorted({budget_text(row["keep"]) for row in summary if row["method"] != full})
    notes = [f"Budget{'s' if len(texts) > 1 else ''}: {', '.join(texts)}."]
    if any(name in baselines for name in lines):
        notes.append("Baselines are gray and dashed." if len(texts) > 1 else "Baselines are gray.")
    if len(named) < len(lines):
        notes.append("Light gray: the other methods, which the legend does not name.")
    return " ".join(notes)


def _line(axis: Any, rows: Sequence[dict[str, Any]], x: str, y: str, **style: Any) -> None:
    if len(rows) == 1:
        style["linestyle"] = "none"
    axis.plot([row[x] for row in rows], [row[y] for row in rows], **style)
