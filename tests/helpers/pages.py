"""Reads code blocks of Markdown pages, including those inside tabs, with the comment before each."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(
    r"^(?: *<!-- (?P<note>[^\n]*) -->\n)?(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.S | re.M
)
# Languages of shell blocks in the README and other pages.
SHELL = ("", "bash", "sh", "console")


class Block(NamedTuple):
    """A fenced block: its language, its text without indentation, and the HTML comment before it."""

    language: str
    text: str
    note: str


def blocks(page: Path) -> list[Block]:
    """Returns the fenced blocks of a page in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(match["language"], textwrap.dedent(match["text"]), match["note"] or "") for match in _FENCE.finditer(text)
    ]


def pages() -> list[Path]:
    """Returns README.md and the handwritten pages of docs/."""
    docs = [path for path in sorted((ROOT / "docs").rglob("*.md")) if path.parent != ROOT / "docs" / "methods"]
    return [ROOT / "README.md", *docs]


def commands(page: Path) -> list[list[str]]:
    """Returns the `fewtokens` command lines in the shell blocks of a page; a backslash continues a line."""
    texts = [block.text.replace("\\\n", " ") for block in blocks(page) if block.language in SHELL]
    lines = [line for text in texts for line in text.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("fewtokens ")]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()
