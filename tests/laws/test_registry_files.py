"""A file of tests for every method and every module of shared arithmetic, and none that is left over."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import fewtokens.methods.ops
from fewtokens.core import registry

METHODS = Path(__file__).parents[1] / "methods"
NAMES = [
    name
    for name in [*registry.names(), *registry.layer_names()]
    if registry.get(name).__module__.startswith("fewtokens.")
]


def test_functions(path: Path) -> list[str]:
    """The source of every test in a file, decorators included."""
    text = path.read_text()
    lines = text.splitlines()
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    return [
        "\n".join(lines[min([node.lineno, *(each.lineno for each in node.decorator_list)]) - 1 : node.end_lineno])
        for node in functions
        if node.name.startswith("test_")
    ]


test_functions.__test__ = False


@pytest.mark.parametrize("name", NAMES)
def test_every_method_has_tests_of_its_own(name):
    path = METHODS / f"test_{name}.py"
    assert path.exists(), f"{name} has no tests: write {path.name} with a small calculation that does not use our code"
    pattern = re.compile(rf"\b({name}|{registry.get(name).__name__})\b")
    assert any(pattern.search(source) for source in test_functions(path)), f"no test in {path.name} builds {name}"


def test_nothing_is_left_of_methods_that_are_gone():
    assert {path.stem.removeprefix("test_") for path in METHODS.glob("test_*.py")} == set(NAMES)
    modules = {path.stem for path in Path(next(iter(fewtokens.methods.ops.__path__))).glob("*.py")}
    assert {path.stem.removeprefix("test_") for path in (METHODS / "ops").glob("test_*.py")} <= modules
