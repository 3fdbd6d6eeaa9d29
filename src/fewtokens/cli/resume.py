"""A folder that a stopped run goes on from: its settings, and a line for each thing that is done."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fewtokens.files import write_json


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Writes the settings of a new run, or compares them with those of the one that goes on.

    Raises:
        ValueError: they differ.
    """
    plain = json.loads(json.dumps(settings))
    if path.exists():
        try:
            before = json.loads(path.read_text())
        except ValueError:
            raise ValueError(f"{path}: cannot be read; remove it, or give another --out") from None
        if before != plain:
            changed = ", ".join(name for name in plain if before.get(name) != plain[name])
            raise ValueError(f"{path.parent} holds a run with another {changed}; give another --out")
        return
    write_json(path, plain)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """What an earlier run wrote; a line that was cut when it was stopped is left out."""
    return list(_lines(path)) if path.exists() else []


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def append_row(path: Path, row: dict[str, Any]) -> None:
    """One line in one write, so that two runs may share a folder. A line cut before it stays a line of its own."""
    text = json.dumps(row) + "\n"
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        end = os.lseek(handle, 0, os.SEEK_END)
        if end and os.pread(handle, 1, end - 1) != b"\n":
            text = "\n" + text
        os.write(handle, text.encode())
    finally:
        os.close(handle)
