"""The two ends of the command: results go to `out`, everything else to `log`."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

out = Console()
log = Console(stderr=True)


def note(label: str, text: object, color: str = "yellow") -> None:
    """One line on stderr: a label, and a text of any lines and brackets."""
    line = " ".join(str(text).split())
    line = line if len(line) <= 1000 else f"{line[:1000]} ..."
    log.print(f"[{color}]{label}[/{color}] {escape(line)}", soft_wrap=True, highlight=False)


def fail(message: object) -> None:
    """An error, in one line on stderr."""
    note("error:", message, "red")
