"""The log of a run, metrics.jsonl: a line every few steps and after each evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewtokens.core import files


class Metrics:
    """Lines of numbers, each with its step.

    Steps that a killed run had done after its last checkpoint are done again, and so are their lines. Until then the
    lines of before stay in the file: nothing is deleted that is not replaced.

    Args:
        path: of metrics.jsonl.
        step: that the run goes on from.
        writes: whether this process writes the file.

    Attributes:
        lines: up to where the run is.

    Raises:
        ValueError: the file holds something else.
    """

    def __init__(self, path: Path, step: int, *, writes: bool) -> None:
        self.path, self.writes = path, writes
        found = files.read_rows(path, dict[str, Any]) if writes else []
        for number, line in enumerate(found, 1):
            wrong = [
                name for name, value in line.items() if isinstance(value, bool) or not isinstance(value, int | float)
            ]
            if wrong or not isinstance(line.get("step"), int):
                raise ValueError(
                    f"{path}: line {number} is not a step and its numbers; remove the line, or take --fresh"
                )
        self.lines = [line for line in found if line["step"] <= step]
        self._ahead = [line for line in found if line["step"] > step]

    def add(self, step: int, numbers: dict[str, float]) -> None:
        line = {"step": step} | numbers

        def replaced(old: dict[str, Any]) -> bool:  # a step may have two lines, one of them of an evaluation
            return old["step"] == step and old.keys() == line.keys()

        again = any(map(replaced, self.lines[-2:]))
        self.lines = [old for old in self.lines if not replaced(old)] if again else self.lines
        self.lines.append(line)
        if not self.writes:
            return
        if not self._ahead and not again:
            files.add_row(self.path, line)
            return
        self._ahead = [old for old in self._ahead if old["step"] >= step and not replaced(old)]
        files.write_rows(self.path, [*self.lines, *self._ahead])

    def finish(self) -> None:
        """Drops what a longer run had written."""
        if self._ahead and self.writes:
            self._ahead = []
            files.write_rows(self.path, self.lines)
