"""Tables that fit the terminal, and JSON for machines."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from fewtokens.cli.console import out

# Columns of text are wrapped to no less than this; numbers are not wrapped.
_MIN_WIDTH = 12
_GAP = 2


def table(title: str, rows: Sequence[dict[str, Any]]) -> RenderableType:
    """Returns a table of rows with equal keys, numbers aligned right.

    If the terminal is too narrow, the remaining columns follow in another table below, with the first column repeated.
    """
    names = list(rows[0]) if rows else []
    widths = {name: _least_width(name, rows) for name in names}
    parts: list[list[str]] = [names[:1]]
    for name in names[1:]:
        if sum(widths[each] + _GAP for each in parts[-1]) + widths[name] > out.width and len(parts[-1]) > 1:
            parts.append(names[:1])
        parts[-1].append(name)
    return Group(*(_part(title if not number else "", rows, part, widths) for number, part in enumerate(parts)))


def _part(title: str, rows: Sequence[dict[str, Any]], names: Sequence[str], widths: dict[str, int]) -> Table:
    part = Table(
        title=title or None, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, show_edge=False,
        pad_edge=False, padding=(0, _GAP - 1, 0, 0),
    )  # fmt: skip
    for name in names:
        # rich narrows other columns first if a column that needs its full width is not wrapped.
        part.add_column(
            escape(name), justify="right" if _is_number(name, rows) else "left", min_width=widths[name],
            no_wrap=widths[name] == _width(name, rows), overflow="fold",
        )  # fmt: skip
    for row in rows:
        part.add_row(*(escape(text(name, row[name])) for name in names))
    return part


def _is_number(name: str, rows: Sequence[dict[str, Any]]) -> bool:
    return any(isinstance(row[name], int | float) for row in rows)


def _width(name: str, rows: Sequence[dict[str, Any]]) -> int:
    return max(len(name), *(len(text(name, row[name])) for row in rows))


def _least_width(name: str, rows: Sequence[dict[str, Any]]) -> int:
    width = _width(name, rows)
    # Names of methods stay complete, to be distinguished and copied.
    unbroken = name == "method" and width <= 24
    return width if unbroken or _is_number(name, rows) else min(width, _MIN_WIDTH)


def text(name: str, value: Any) -> str:
    """Formats a value for a table."""
    if value is None:
        return "-"
    if name == "retention":
        return f"{100 * value:.2f} %"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1 else f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def to_json(value: Any) -> str:
    """Returns indented JSON; infinite and NaN numbers (such as the PSNR of a perfect copy) become null."""

    def plain(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: plain(entry) for name, entry in part.items()}
        if isinstance(part, list | tuple):
            return [plain(entry) for entry in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    return json.dumps(plain(value), indent=2, default=str) + "\n"


def print_json(value: Any) -> None:
    """Prints a value as JSON on stdout."""
    sys.stdout.write(to_json(value))
