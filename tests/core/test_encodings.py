"""All text is read and written with an explicit encoding."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fewtokens

SOURCE = Path(fewtokens.__file__).parent
# Modules whose open() does not open a text file.
OTHERS = {"av", "Image", "VideoFile", "signals", "tarfile", "os", "webbrowser"}


def lines_without_encoding(tree: ast.AST) -> list[int]:
    """Returns the lines that open, read or write text without an explicit encoding."""
    lines = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if method else getattr(node.func, "id", "")
        keywords = {keyword.arg for keyword in node.keywords}
        owner = ast.unparse(node.func.value).rpartition(".")[2] if method else ""
        if name in ("read_text", "write_text"):
            # fewtokens.core.files has functions with these names, which always specify the encoding.
            ours = owner == "files" or not method
            missing = not ours and "encoding" not in keywords
        elif name == "open" and owner not in OTHERS:
            modes = node.args[0 if method else 1 :][:1] + [k.value for k in node.keywords if k.arg == "mode"]
            binary = any(isinstance(mode, ast.Constant) and "b" in str(mode.value) for mode in modes)
            missing = not binary and "encoding" not in keywords
        else:
            missing = False
        if missing:
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("path.read_text()", 1), ("Path(x).write_text('a', newline='')", 1), ("open(x)", 1), ("open(x, 'a')", 1),
        ("path.open()", 1), ("path.open('w')", 1), ("open(x, mode='r')", 1), ("path.read_text(encoding='utf-8')", 0),
        ("files.read_text(x)", 0), ("read_text(x)", 0), ("open(x, 'rb')", 0), ("path.open('rb+')", 0),
        ("open(x, mode='wb')", 0), ("path.open('a', encoding='utf-8')", 0), ("Image.open(x)", 0),
        ("av.open(x, 'w')", 0),
    ],
)  # fmt: skip
def test_lines_without_encoding(text, count):
    assert len(lines_without_encoding(ast.parse(text))) == count


def test_every_encoding_is_explicit():
    problems = [
        f"{path.relative_to(SOURCE)}:{line}"
        for path in sorted(SOURCE.rglob("*.py"))
        for line in lines_without_encoding(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not problems, f"pass encoding='utf-8', or use fewtokens.core.files: {', '.join(problems)}"
