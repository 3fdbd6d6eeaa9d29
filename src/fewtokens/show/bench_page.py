"""The page of a bench: table of means, plots, and for some clips the frames with the regions of the tokens."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fewtokens.core.budget import budget_text
from fewtokens.core.keys import heading
from fewtokens.show.page import as_jpeg, plain, write_data


def write_bench_page(
    summary: Sequence[dict[str, Any]],
    rows: Sequence[dict[str, Any]],
    frames: dict[str, tuple[Tensor, list[str], list[int]]],
    plots: Sequence[Path],
    path: Path,
    *,
    title: str,
    note: str,
    unpack: Callable[[str], Any],
) -> Path:
    """Writes a page that needs no network and no other file.

    Args:
        summary: means over clips.
        rows: one per clip, budget and method.
        frames: for each clip that is shown: uint8 [n,3,H,W], a caption per frame, and the grid (n, rows, columns).
        plots: PNG files.
        path: of the page.
        title: heading of the page.
        note: the line below the heading.
        unpack: converts a row's "assignment" to int32 [n*rows*columns].

    Returns:
        The path.
    """
    hidden = {"clip", "method", "spec", "keep", "vector", "assignment", "grid", "cells", "clips", "repeats"}
    hidden |= {"label", "over_budget", "retention", "frames"}
    hidden |= {f"{time}_{part}" for time in ("method_ms", "total_ms") for part in ("spread", "min", "max")}
    by_clip: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_clip.setdefault(row["clip"], []).append(row)
    clips: list[dict[str, Any]] = [
        {
            "name": f"all {len(by_clip)} clips" if len(by_clip) > 1 else "summary",
            "captions": [],
            "frames": [],
            "results": [_result(line, hidden, None, None) for line in summary],
            "plots": [_png(plot) for plot in plots],
        }
    ]
    for name, part in by_clip.items():
        shown = frames.get(name)
        images, captions, grid = shown or (None, [], [])
        clips.append(
            {
                "name": name,
                "captions": captions,
                "size": [] if images is None else list(images.shape[2:]),
                "frames": [] if images is None else [as_jpeg(frame) for frame in images],
                "results": [
                    _result(row, hidden, grid, unpack(row["assignment"]) if shown and "assignment" in row else None)
                    for row in part
                ],
            }
        )
    return write_data(clips, path, title=title, note=note)


def _result(row: dict[str, Any], hidden: set[str], grid: Any, assignment: Any) -> dict[str, Any]:
    keep = row["keep"]
    return {
        "name": row.get("label", row["method"]) + (" (over budget)" if row.get("over_budget") else ""),
        "spec": row.get("spec", row["method"]),
        "group": "everything" if row["method"] == "full" else keep if isinstance(keep, int) else budget_text(keep),
        "grid": grid,
        "source": None if assignment is None else base64.b64encode(assignment.tobytes()).decode(),
        "frames": None,
        "numbers": {
            heading(name): "exact" if name == "psnr_db" and value == math.inf else plain(value)
            for name, value in row.items()
            if name not in hidden and value is not None
        },
    }


def _png(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
