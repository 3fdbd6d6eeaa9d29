"""The curves of a run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewtokens.files import whole_file


def draw_curves(metrics: Sequence[dict[str, Any]], path: Path) -> Path | None:
    """Loss and scores over the steps, one panel each; None where matplotlib is not installed.

    Args:
        metrics: lines of metrics.jsonl.
        path: of the PNG.
    """
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(name for line in metrics for name in line if name not in ("step", "epoch")))
    if not names:
        return None
    figure, axes = plt.subplots(1, len(names), figsize=(3.2 * len(names), 2.8), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], names, strict=True):
        points = [(line["step"], line[name]) for line in metrics if name in line]
        axis.plot(*zip(*points, strict=True), color="#2458a6", marker="o" if len(points) < 15 else "", markersize=3)
        axis.set(title=name, xlabel="step")
        axis.grid(alpha=0.3)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)
    return path
