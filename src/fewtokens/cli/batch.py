"""Several inputs of a verb, of which some may fail: for `tokenize`, `encode` and `decode`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape

from fewtokens.cli.console import fail, log
from fewtokens.cli.tables import print_json


class Batch:
    """The results of a verb that processes several inputs, and goes on if one of them fails.

    Args:
        total: number of inputs. The error of a single one is raised.
        kind: what an input is, "video" or "file", also its key in the lists of results.
        folder: output folder, for the list of failures.

    Attributes:
        done: an entry for each result.
    """

    def __init__(self, total: int, kind: str, folder: Path) -> None:
        self.total, self.kind, self.list = total, kind, folder / "failed.jsonl"
        self.done: list[dict[str, Any]] = []
        self.failed: list[dict[str, str]] = []

    def fail(self, path: Path, error: Exception) -> None:
        """Reports the error of an input, or raises it if there is only one input; called in an `except` block."""
        if self.total == 1:
            raise error
        fail(error)
        self.failed.append({self.kind: str(path), "error": " ".join(str(error).split())})

    def finish(self, as_json: bool) -> None:
        """Writes failed.jsonl, or removes that of an earlier run, prints JSON, and exits with 1 if an input failed."""
        from fewtokens.core.files import write_text

        if self.failed:
            write_text(self.list, "".join(json.dumps(row) + "\n" for row in self.failed))
        elif self.total > 1:
            self.list.unlink(missing_ok=True)
        if as_json:
            print_json({"done": self.done, "failed": self.failed})
        if self.failed:
            log.print(f"{len(self.failed)} of {self.total} {self.kind}s failed; see {escape(str(self.list))}")
            raise typer.Exit(1)
