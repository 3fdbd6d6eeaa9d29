"""The names of methods and the syntax of spec strings, read without importing a method, and so without torch."""

from __future__ import annotations

import ast
import difflib
import pkgutil
import re
import warnings
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, NamedTuple

from fewtokens import methods
from fewtokens.core import entry_points
from fewtokens.core.plain import one_line

# A method is a file in one of these folders of `fewtokens.methods` and has the name of the file.
KINDS = ("baselines", "pruning", "merging", "clustering", "pooling", "learned", "memory", "quantizers")
# Their methods do not map tokens to tokens: they select frames before encoding, or act inside a language model.
SELECTION_KIND, LAYER_KIND = "selection", "layers"
ALL_KINDS = (*KINDS, SELECTION_KIND, LAYER_KIND)

# Longer than any real chain: characters, and methods.
MAX_LENGTH, MAX_LINKS = 10_000, 100


class Link(NamedTuple):
    """One method of a spec string.

    Attributes:
        name: the name of a method.
        values: the positional arguments, at most one.
        named: the other arguments, whose names may be repeated.
        text: the text of the link, for messages.
    """

    name: str
    values: list[Any]
    named: list[tuple[str, Any]]
    text: str


@cache
def folder(kind: str) -> tuple[str, ...]:
    """Returns the names of the methods of a kind by listing its folder, without importing them."""
    path = Path(methods.__path__[0]) / kind
    return tuple(sorted(module.name for module in pkgutil.iter_modules([str(path)])))


def own_names() -> list[str]:
    """Returns the names of all methods of this package, by kind."""
    return [name for kind in ALL_KINDS for name in folder(kind)]


def external() -> dict[str, EntryPoint]:
    """Returns the entry points of other packages by name, without importing their packages."""
    return entry_points.external(own_names())


@cache
def parameters(name: str) -> tuple[str, ...] | None:
    """Returns the arguments of a method, see `constructor_arguments`; None if another package defines it."""
    kinds = [kind for kind in ALL_KINDS if name in folder(kind)]
    return constructor_arguments(Path(methods.__path__[0]) / kinds[0] / f"{name}.py", name) if kinds else None


def constructor_arguments(path: Path, name: str) -> tuple[str, ...] | None:
    """Returns the parameters of a constructor, read from its source without importing it.

    Args:
        path: source file.
        name: name of the class in snake case.

    Returns:
        Their names, or None if the file does not define the class, or not its constructor.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    own = [node for node in classes if node.name.lower() == name.replace("_", "")]
    inits = [node for part in own for node in part.body if getattr(node, "name", "") == "__init__"]
    if len(inits) != 1 or not isinstance(inits[0], ast.FunctionDef) or inits[0].args.kwarg:
        return None
    arguments = inits[0].args
    return tuple(argument.arg for argument in [*arguments.posonlyargs, *arguments.args[1:], *arguments.kwonlyargs])


def check_argument_names(name: str, named: Iterable[str], values: Sequence[Any], known: Sequence[str]) -> None:
    """Raises ValueError if an argument of a method is not among the `known` ones."""
    unknown = sorted(set(named) - set(known))
    if unknown or (values and not known):
        text = one_line(", ".join(unknown) or repr(values[0]))
        raise ValueError(f"{name} has no argument {text}; it accepts {', '.join(known) or 'no arguments'}")


def check_name(name: str) -> None:
    """Raises ValueError if there is no method of this name; the message suggests similar names."""
    if name in own_names() or name in external():
        return
    similar = difflib.get_close_matches(name, [*own_names(), *external()], n=3)
    hint = f"did you mean {' or '.join(similar)}?" if similar else "run 'fewtokens methods' to list all"
    raise ValueError(f"no method called {one_line(name)!r}; {hint}")


def read_links(spec: str) -> list[Link]:
    """Reads the methods of a spec string, from left to right; the values of arguments are not checked.

    Raises:
        ValueError: the spec cannot be parsed, or the name of a method or of an argument is unknown.
    """
    if len(spec) > MAX_LENGTH:
        raise ValueError(f"a spec must have at most {MAX_LENGTH} characters, got {len(spec)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's warnings about literals do not help the author of a spec
            tree = ast.parse(spec.strip(), mode="eval").body
        links: list[ast.expr] = []
        while isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.BitOr):
            links.append(tree.right)
            tree = tree.left
        links = [tree, *reversed(links)]
        if len(links) > MAX_LINKS:
            raise ValueError(f"a chain must have at most {MAX_LINKS} methods, got {len(links)}")
        return [_read_link(link, spec) for link in links]
    except SyntaxError:
        raise ValueError(
            f"cannot read the spec {short(spec)}; write it like 'rlt(tau=0.1) | tome(keep=0.25)'"
        ) from None
    except (RecursionError, MemoryError):
        raise ValueError(f"the spec {short(spec)} is nested too deeply") from None


def split_specs(texts: str) -> list[str]:
    """Splits comma-separated specs; commas inside brackets do not separate."""
    parts, depth = [""], 0
    for character in texts:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def short(spec: str) -> str:
    """Returns the start of a spec in quotes, for messages."""
    return repr(spec) if len(spec) <= 120 else f"{spec[:117]!r}..."


def read_values(call: ast.Call, name: str, text: str) -> Link:
    """Reads the values of the arguments of a call.

    Args:
        call: parsed call.
        name: name of the method or part.
        text: text of the call, for messages.

    Raises:
        ValueError: a value is not a literal.
    """
    try:
        named = [(str(keyword.arg), ast.literal_eval(keyword.value)) for keyword in call.keywords]
        values = [ast.literal_eval(value) for value in call.args]
    except (ValueError, TypeError):  # a call, a name; a list as the key of a dict
        per_frame = re.search(r"(\w+=)?(\d+) / frame", text)
        hint = f'; write {per_frame[1] or ""}"{per_frame[2]}/frame" in quotes' if per_frame else ""
        raise ValueError(f"arguments in a spec must be numbers, strings, tuples or lists: {text}{hint}") from None
    return Link(name, values, named, text)


def _read_link(node: ast.expr, spec: str) -> Link:
    text = short(ast.unparse(node))[1:-1]
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name):
        raise ValueError(f"cannot read '{text}' in the spec {short(spec)}; write a method like tome(keep=0.25)")
    check_name(call.func.id)
    link = read_values(call, call.func.id, text)
    if (known := parameters(link.name)) is not None:
        check_argument_names(link.name, [argument for argument, _ in link.named], link.values, known)
    return link
