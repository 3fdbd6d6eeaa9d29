"""The page of a training run: numbers, curves and images in one self-contained file."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewtokens.core.files import write_text

_STYLE = (
    ":root{color-scheme:light dark;--paper:#fff;--ink:#1c1e24;--soft:#5b616e;--line:#e1e3e8}"
    "@media(prefers-color-scheme:dark){:root{--paper:#14161b;--ink:#eceef3;--soft:#a4abba;--line:#363b47}}"
    "body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:1240px;"
    "margin:32px auto;padding:0 20px}"
    "img{max-width:100%;border:1px solid var(--line)}table{border-collapse:collapse;margin:8px 0 20px}"
    "td,th{text-align:left;padding:3px 16px 3px 0;border-bottom:1px solid var(--line);font-weight:normal;"
    "overflow-wrap:anywhere}"
    "td{font-variant-numeric:tabular-nums}.note{color:var(--soft)}details{margin:20px 0}"
)


def write_run_page(
    path: str | Path,
    *,
    title: str,
    note: str,
    numbers: Mapping[str, Any],
    images: Sequence[tuple[str, str, Path]],
    settings: Mapping[str, Any],
) -> Path:
    """Writes a page that needs no network and no other file.

    Args:
        path: of the page.
        title: heading of the page.
        note: the line below the heading.
        numbers: the last value of each metric, by name.
        images: heading, caption and PNG of each image; missing files are skipped.
        settings: of the run, collapsed at the end of the page.

    Returns:
        The path.
    """
    parts = [f"<h1>{html.escape(title)}</h1><p class=note>{html.escape(note)}</p>", _table(numbers)]
    for heading, caption, image in images:
        if image.is_file():
            data = base64.b64encode(image.read_bytes()).decode()
            parts.append(
                f"<h2>{html.escape(heading)}</h2><p class=note>{html.escape(caption)}</p>"
                f'<img alt="{html.escape(heading)}" src="data:image/png;base64,{data}">'
            )
    parts.append(f"<details><summary>Settings</summary>{_table(settings)}</details>")
    head = (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(title)}</title>"
    )
    write_text(path, f"{head}<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n")
    return Path(path)


def _table(rows: Mapping[str, Any]) -> str:
    def text(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    cells = (
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(text(value))}</td></tr>" for name, value in rows.items()
    )
    return f"<table>{''.join(cells)}</table>"
