"""The log of a run, metrics.jsonl: one line every few steps and after each evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewtokens.core import files


class Metrics:
    """Lines of numbers, each with its step.

    Steps that a killed run did after its last checkpoint are repeated, and so are their lines. Until then the old lines
    stay in the file: nothing is deleted before it is replaced.

    Args:
        path: the file metrics.jsonl.
        step: the step at which the run resumes.
        writes: whether this process writes the file.

    Attributes:
        lines: the lines up to the current step.

    Raises:
        ValueError: the file contains something else.
    """

    def __init__(self, path: Path, step: int, *, writes: bool) -> None:
        self.path, self.writes = path, writes
        rows = files.read_rows(path, dict[str, Any]) if writes else []
        for number, line in enumerate(rows, 1):
            invalid = [
                name for name, value in line.items() if isinstance(value, bool) or not isinstance(value, int | float)
            ]
            if invalid or not isinstance(line.get("step"), int):
                raise ValueError(f"{path}: line {number} is not a step with numbers; remove the line, or use --fresh")
        self.lines = [line for line in rows if line["step"] <= step]
        self._ahead = [line for line in rows if line["step"] > step]

    def add(self, step: int, numbers: dict[str, float]) -> None:
        line = {"step": step} | numbers

        def is_same(old: dict[str, Any]) -> bool:  # a step may have two lines, one of them of an evaluation
            return old["step"] == step and old.keys() == line.keys()

        repeated = any(map(is_same, self.lines[-2:]))
        self.lines = [old for old in self.lines if not is_same(old)] if repeated else self.lines
        self.lines.append(line)
        if not self.writes:
            return
        if not self._ahead and not repeated:
            files.append_row(self.path, line)
            return
        self._ahead = [old for old in self._ahead if old["step"] >= step and not is_same(old)]
        files.write_rows(self.path, [*self.lines, *self._ahead])

    def finish(self) -> None:
        """Drops the lines of a longer run."""
        if self._ahead and self.writes:
            self._ahead = []
            files.write_rows(self.path, self.lines)
