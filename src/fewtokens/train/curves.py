"""The curves of a run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewtokens.core.files import whole_file

_COLOURS = ("#2458a6", "#d1495b", "#2e8b57", "#e08e0b", "#7b3fa0")


def draw_curves(metrics: Sequence[dict[str, Any]], path: Path, *, panels: Sequence[Sequence[str]] = ()) -> Path | None:
    """Loss and scores over the steps, one panel each; None where matplotlib is not installed.

    Args:
        metrics: lines of metrics.jsonl.
        path: of the PNG.
        panels: numbers that share a panel; each of the others has its own, after these.
    """
    try:
        from matplotlib.figure import Figure  # without pyplot, whose backend is the caller's
    except ImportError:
        return None

    names = list(dict.fromkeys(name for line in metrics for name in line if name not in ("step", "epoch")))
    together = [[name for name in panel if name in names] for panel in panels]
    shared = {name for panel in together for name in panel}
    drawn = [panel for panel in together if panel] + [[name] for name in names if name not in shared]
    if not drawn:
        return None
    figure = Figure(figsize=(3.2 * len(drawn), 2.8), layout="constrained")
    axes = figure.subplots(1, len(drawn), squeeze=False)
    for axis, panel in zip(axes[0], drawn, strict=True):
        for number, name in enumerate(panel):
            points = [(line["step"], line[name]) for line in metrics if name in line]
            style = {"color": _COLOURS[number % len(_COLOURS)], "marker": "o" if len(points) < 15 else ""}
            axis.plot(*zip(*points, strict=True), label=name, markersize=3, **style)
        axis.set(title=panel[0] if len(panel) == 1 else "", xlabel="step")
        if len(panel) > 1:
            axis.legend(fontsize=8, frameon=False)
        axis.grid(alpha=0.3)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return path
