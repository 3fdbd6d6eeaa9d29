"""Docstrings as Markdown: they are text with literal `*`, `_` and `<`, which Markdown would read as markup."""

from __future__ import annotations

import re

_SECTION = re.compile(r"(Args|Attributes):\s*")
_ENTRY = re.compile(r"( {4})(\w+(?:, \w+)+): (.*)")
# Headings that griffe would read as an admonition, with their entries in one paragraph.
_HEADING = re.compile(r"^(Class attributes|Keys):$", re.M)
# A heading of a section, whose indented lines are entries and not code.
_TITLE = re.compile(r"[A-Z][\w ]*(\([^)]*\))?:")
# The name or type before the colon of an entry, which griffe parses.
_HEAD = re.compile(r"    [\w*\[][\w*, .\[\]|]*(\([^)]*\))?: ")
_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.S)


def escape(text: str) -> str:
    """Prose as Markdown that shows the same characters; code spans stay unchanged."""
    parts, end = [], 0
    for code in _CODE.finditer(text):
        parts += [_literal(text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, _literal(text[end:])])


def _literal(text: str) -> str:
    text = re.sub(r"(?<!\\)\*", r"\\*", text)
    # Between letters an underscore is no markup.
    text = re.sub(r"(?<![\\\w])_|_(?!\w)", r"\\_", text)
    return text.replace("<", "&lt;")


def literal(docstring: str) -> str:
    """A docstring with its prose escaped. Fenced and indented code, and the names of entries, stay unchanged."""
    lines: list[str] = []
    prose: list[str] = []
    head = ""

    def flush() -> None:
        nonlocal head
        if prose:
            lines.extend((head + escape("\n".join(prose))).split("\n"))
        prose.clear()
        head = ""

    fenced = section = code = False
    for line in docstring.splitlines():
        fence = line.lstrip().startswith("```")
        if line and not line.startswith(" "):
            section = bool(_TITLE.fullmatch(line))
        after_blank = not (prose or (lines and lines[-1].strip()))
        code = not section and (line.startswith("    ") or not line) and (code or (bool(line) and after_blank))
        if fenced or fence or code or not line.strip():
            flush()
            lines.append(line)
        else:
            if section and (match := _HEAD.match(line)):
                flush()
                head, line = match[0], line[match.end() :]
            prose.append(line)
        fenced ^= fence
    flush()
    return "\n".join(lines)


def separate(docstring: str) -> str:
    """The docstring with an entry for each name, with the same text."""
    docstring = _HEADING.sub("Attributes:", docstring)
    # Attributes of the class and of its instances are one table.
    docstring = re.sub(r"^(Attributes:\n(?: .*\n)+)\nAttributes:\n", r"\1", docstring, flags=re.M)
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
