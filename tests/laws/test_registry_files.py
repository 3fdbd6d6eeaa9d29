"""Every method and every shared operation has a test file, and every test file belongs to one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import fewtokens.methods.ops
from fewtokens.core import registry

METHODS = Path(__file__).parents[1] / "methods"
NAMES = [name for name in registry.every_name() if registry.get(name).__module__.startswith("fewtokens.")]


def read_tests(path: Path) -> list[str]:
    """Returns the source of every test in a file, including decorators."""
    text = path.read_text()
    lines = text.splitlines()
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    return [
        "\n".join(
            lines[min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1 : node.end_lineno]
        )
        for node in functions
        if node.name.startswith("test_")
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_method_has_its_tests(name):
    path = METHODS / f"test_{name}.py"
    assert path.exists(), f"{name} has no tests: write {path.name} with a small calculation that does not use fewtokens"
    pattern = re.compile(rf"\b({name}|{registry.get(name).__name__})\b")
    assert any(pattern.search(source) for source in read_tests(path)), f"no test in {path.name} builds {name}"


def test_every_test_file_belongs_to_a_method():
    assert {path.stem.removeprefix("test_") for path in METHODS.glob("test_*.py")} == set(NAMES)
    modules = {path.stem for path in Path(next(iter(fewtokens.methods.ops.__path__))).glob("*.py")}
    assert {path.stem.removeprefix("test_") for path in (METHODS / "ops").glob("test_*.py")} <= modules
