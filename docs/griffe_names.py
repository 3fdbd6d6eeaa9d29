"""A griffe extension: an entry of a docstring for several names, `mean, std: ...`, becomes one entry for each name.

Each entry has the full text.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_SECTION = re.compile(r"(Args|Attributes):\s*")
_ENTRY = re.compile(r"( {4})(\w+(?:, \w+)+): (.*)")


def separate(docstring: str) -> str:
    """The docstring with an entry for each name, with the same text."""
    lines: list[str] = []
    text: list[str] = []  # the current entry after its names, with its further lines
    names: list[str] = []
    inside = False

    def finish() -> None:
        for name in names:
            lines.extend([f"    {name}: {text[0]}", *text[1:]])
        names.clear()
        text.clear()

    for line in docstring.splitlines():
        if names and line.startswith("     "):
            text.append(line)
            continue
        finish()
        if inside and (entry := _ENTRY.fullmatch(line)):
            names.extend(entry[2].split(", "))
            text.append(entry[3])
            continue
        inside = bool(_SECTION.fullmatch(line)) or (inside and (not line or line.startswith(" ")))
        lines.append(line)
    finish()
    return "\n".join(lines)


class Names(griffe.Extension):
    """Applies `separate` to every docstring."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = separate(obj.docstring.value)
