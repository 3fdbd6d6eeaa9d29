"""The output streams of the command: results go to `out` (stdout), everything else to `log` (stderr)."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

out = Console()
log = Console(stderr=True)


def note(label: str, text: object, color: str = "yellow") -> None:
    """Prints one line on stderr: a colored label and a text, whose line breaks are replaced and markup is escaped."""
    line = " ".join(str(text).split())
    line = line if len(line) <= 1000 else f"{line[:1000]} ..."
    log.print(f"[{color}]{label}[/{color}] {escape(line)}", soft_wrap=True, highlight=False)


def fail(message: object) -> None:
    """Prints an error in one line on stderr."""
    note("error:", message, "red")
