"""A griffe extension: an entry of a docstring for several names, `mean, std: ...`, becomes one entry for each name."""

from __future__ import annotations

import re
from typing import Any

import griffe

_SECTION = re.compile(r"(Args|Attributes):\s*")
_ENTRY = re.compile(r"( {4})(\w+(?:, \w+)+): (.*)")


def separate(docstring: str) -> str:
    """The docstring with an entry for each name; the entries after the first refer to it."""
    lines, later, inside = [], [], False
    for line in docstring.splitlines():
        entry = _ENTRY.fullmatch(line) if inside else None
        if later and not line.startswith("     "):
            lines += later
            later = []
        if entry:
            first, *others = entry[2].split(", ")
            lines.append(f"{entry[1]}{first}: {entry[3]}")
            later = [f"{entry[1]}{name}: See `{first}`." for name in others]
            continue
        inside = bool(_SECTION.fullmatch(line)) or (inside and (not line or line.startswith(" ")))
        lines.append(line)
    return "\n".join([*lines, *later])


class Names(griffe.Extension):
    """Applies `separate` to every docstring."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = separate(obj.docstring.value)
