"""Plots the curves of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewtokens.core.keys import heading
from fewtokens.show.plots import save_plot

_UNITS = {
    "lr": "learning rate",
    "top1": "top-1 accuracy (%)",
    "top5": "top-5 accuracy (%)",
    "map": "mean average precision (%)",
    "exact_match": "exact match (%)",
}
_COLORS = ("#2458a6", "#d1495b", "#2e8b57", "#e08e0b", "#7b3fa0")


def draw_curves(
    metrics: Sequence[dict[str, Any]],
    path: Path,
    *,
    title: str,
    caption: str = "",
    panels: Sequence[Sequence[str]] = (),
) -> Path | None:
    """Plots loss and scores over the steps, one panel each; returns None if matplotlib is not installed.

    Args:
        metrics: the lines of metrics.jsonl.
        path: the PNG file; an SVG of the same name is written next to it.
        title: of the figure.
        caption: below the panels.
        panels: names that share a panel; every other name gets a panel after these.
    """
    try:
        from matplotlib.figure import Figure  # without pyplot, whose backend is the caller's
    except ImportError:
        return None

    names = list(dict.fromkeys(name for line in metrics for name in line if name not in ("step", "epoch")))
    shared = [[name for name in panel if name in names] for panel in panels]
    in_shared = {name for panel in shared for name in panel}
    panels = [panel for panel in shared if panel] + [[name] for name in names if name not in in_shared]
    if not panels:
        return None
    figure = Figure(figsize=(3.2 * len(panels), 2.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        for index, name in enumerate(panel):
            points = [(line["step"], line[name]) for line in metrics if name in line]
            style = {"color": _COLORS[index % len(_COLORS)], "marker": "o" if len(points) < 15 else ""}
            axis.plot(*zip(*points, strict=True), label=name, markersize=3, **style)
        axis.set(ylabel=_UNITS.get(panel[0], heading(panel[0])) if len(panel) == 1 else "loss", xlabel="step")
        if len(panel) > 1:
            axis.legend(fontsize=8, frameon=False)
        axis.grid(alpha=0.3)
    return save_plot(figure, path, title=title, caption=caption)
