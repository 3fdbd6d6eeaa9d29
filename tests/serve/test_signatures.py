"""The stand-ins have the signatures of vLLM, if it is installed or $FEWTOKENS_VLLM is the folder of its package."""

from __future__ import annotations

import ast
import os
from importlib import util
from pathlib import Path

import pytest

from fewtokens.serve.vllm import MODELS

STANDINS = Path(__file__).parent / "standins" / "vllm"
FILES = sorted(str(path.relative_to(STANDINS)) for path in STANDINS.rglob("*.py") if path.stat().st_size)
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Source:
    """A tree of Python files."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def tree(self, file: str) -> ast.Module:
        return ast.parse((self.root / file).read_text())

    def classes(self, file: str) -> dict[str, ast.ClassDef]:
        return {node.name: node for node in self.tree(file).body if isinstance(node, ast.ClassDef)}

    def find(self, name: str) -> ast.ClassDef | None:
        """A class of any model or of the processing of media."""
        for folder in ("model_executor/models", "multimodal"):
            for path in sorted((self.root / folder).rglob("*.py")):
                if f"class {name}" in path.read_text():
                    found = self.classes(str(path.relative_to(self.root))).get(name)
                    if found is not None:
                        return found
        return None

    def method(self, owner: ast.ClassDef, name: str) -> Function | None:
        """A method of a class or of its bases."""
        for node in owner.body:
            if isinstance(node, Function) and node.name == name and not is_overload(node):
                return node
        for base in owner.bases:
            base = base.value if isinstance(base, ast.Subscript) else base
            if isinstance(base, ast.Name) and (parent := self.find(base.id)) is not None:
                found = self.method(parent, name)
                if found is not None:
                    return found
        return None


def is_overload(node: Function) -> bool:
    return any(ast.unparse(decorator) == "overload" for decorator in node.decorator_list)


def accepts(real: Function, stand_in: Function) -> bool:
    """Whether every call of the stand-in is one of the real function: the same names, in the same order and kind.

    The real function may have more parameters with defaults.
    """

    def names(node: Function) -> tuple[list[str], list[str], set[str]]:
        positional = [argument.arg for argument in node.args.posonlyargs + node.args.args]
        optional = positional[len(positional) - len(node.args.defaults) :]
        optional += [a.arg for a, value in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if value]
        return positional, [argument.arg for argument in node.args.kwonlyargs], set(optional)

    (own, own_named, own_optional), (theirs, named, optional) = names(stand_in), names(real)
    more = {*theirs, *named} - {*own, *own_named}
    return theirs[: len(own)] == own and set(own_named) <= set(named) and own_optional <= optional and more <= optional


def fields(owner: ast.ClassDef) -> list[str]:
    """The fields of a dataclass."""
    return [
        node.target.id for node in owner.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]


def package() -> Path | None:
    """The folder of the package vllm."""
    if "FEWTOKENS_VLLM" in os.environ:
        return Path(os.environ["FEWTOKENS_VLLM"])
    installed = util.find_spec("vllm")
    return None if installed is None or installed.origin is None else Path(installed.origin).parent


# Methods and classes that only the stand-ins have.
OWN = {"_encode", "Captured"}


@pytest.mark.skipif(package() is None, reason="set FEWTOKENS_VLLM to the folder of the package vllm")
@pytest.mark.parametrize("file", FILES)
def test_standins_have_the_signatures_of_vllm(file):
    folder = package()
    assert folder is not None
    ours, theirs = Source(STANDINS), Source(folder)
    real = {node.name: node for node in theirs.tree(file).body if isinstance(node, Function | ast.ClassDef)}
    for node in ours.tree(file).body:
        if isinstance(node, Function):
            found = real.get(node.name)
            assert isinstance(found, Function) and accepts(found, node), f"{file}: {node.name}"
        if not isinstance(node, ast.ClassDef) or node.name in OWN:
            continue
        owner = real.get(node.name)
        assert isinstance(owner, ast.ClassDef), f"{file}: no class {node.name}"
        assert set(fields(node)) <= set(fields(owner)), f"{file}: fields of {node.name}"
        for method in node.body:
            if isinstance(method, Function) and method.name not in OWN:
                found = theirs.method(owner, method.name)
                assert found is not None, f"{file}: {node.name} has no {method.name}"
                if any(ast.unparse(decorator) == "property" for decorator in method.decorator_list):
                    continue
                assert accepts(found, method), f"{file}: {node.name}.{method.name} has other parameters"


@pytest.mark.parametrize(
    ("real", "accepted"),
    [
        ("def f(self, a, b): ...", True),
        ("def f(self, a, b, c=1): ...", True),
        ("def f(self, a, b, *, c=1): ...", True),
        ("def f(self, a, b, c): ...", False),
        ("def f(self, b, a): ...", False),
        ("def f(self, a): ...", False),
        ("def f(self, a, *, b): ...", False),
    ],
)
def test_a_changed_signature_is_noticed(real, accepted):
    (real_node,), (own,) = (ast.parse(code).body for code in (real, "def f(self, a, b): ..."))
    assert isinstance(real_node, Function) and isinstance(own, Function)
    assert accepts(real_node, own) is accepted


@pytest.mark.skipif(package() is None, reason="set FEWTOKENS_VLLM to the folder of the package vllm")
def test_vllm_has_the_models_and_no_hooks_of_its_own_for_their_configs():
    """`register` would replace such a hook."""
    folder = package()
    assert folder is not None
    models = folder / "model_executor" / "models"
    registered, hooks = ((models / name).read_text() for name in ("registry.py", "config.py"))
    for architecture in MODELS:
        assert f'"{architecture}"' in registered and f'"{architecture}"' not in hooks
