"""No text is read or written in whatever encoding the machine happens to have."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fewtokens

SOURCE = Path(fewtokens.__file__).parent
# open() of these is of no text file.
OTHERS = {"av", "Image", "VideoFile", "signals", "tarfile", "os", "webbrowser"}


def unspecified(tree: ast.AST) -> list[int]:
    """Lines that open, read or write text and name no encoding."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if method else getattr(node.func, "id", "")
        named = {keyword.arg for keyword in node.keywords}
        owner = ast.unparse(node.func.value).rpartition(".")[2] if method else ""
        if name in ("read_text", "write_text"):
            # fewtokens.core.files has functions of these names, which take a path first and know the encoding.
            ours = owner == "files" or not method
            missing = not ours and "encoding" not in named
        elif name == "open" and owner not in OTHERS:
            modes = node.args[0 if method else 1 :][:1] + [k.value for k in node.keywords if k.arg == "mode"]
            binary = any(isinstance(mode, ast.Constant) and "b" in str(mode.value) for mode in modes)
            missing = not binary and "encoding" not in named
        else:
            missing = False
        if missing:
            found.append(node.lineno)
    return found


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
def test_the_test(text, count):
    assert len(unspecified(ast.parse(text))) == count


def test_every_text_has_an_encoding():
    found = [
        f"{path.relative_to(SOURCE)}:{line}"
        for path in sorted(SOURCE.rglob("*.py"))
        for line in unspecified(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found, f"say encoding='utf-8', or use fewtokens.core.files: {', '.join(found)}"
