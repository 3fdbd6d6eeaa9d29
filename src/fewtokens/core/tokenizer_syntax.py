"""The names of tokenizers and of their parts, and the syntax of their specs, read without torch.

    "causal_conv(width=32) | fsq((8, 8, 8, 5, 5, 5)) > causal_conv(width=32)"
     encoder                 methods                   decoder

Encoders, decoders and presets are files of a folder of `fewtokens.tokenizers` and have the name of the file. Values are
read with `ast.literal_eval`; nothing in a spec is executed.
"""

from __future__ import annotations

import ast
import difflib
import pkgutil
from functools import cache
from pathlib import Path

from fewtokens.core.plain import one_line
from fewtokens.core.syntax import (
    MAX_LENGTH,
    Link,
    check_argument_names,
    constructor_arguments,
    read_links,
    read_values,
    short,
)

_FOLDER = Path(__file__).parents[1] / "tokenizers"
_EXAMPLE = "'causal_conv(width=32) | fsq > causal_conv(width=32)'"


@cache
def part_names(kind: str) -> tuple[str, ...]:
    """Returns the names of all parts of a kind, "encoders", "decoders" or "presets", without importing them."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules([str(_FOLDER / kind)])))


def check_preset(name: str) -> None:
    """Raises ValueError if there is no preset of this name; the message suggests similar names."""
    if name not in part_names("presets"):
        close = difflib.get_close_matches(name, part_names("presets"), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "list them with: fewtokens tokenizers"
        raise ValueError(f"no tokenizer named {one_line(name)!r}; {hint}")


def check_part_name(kind: str, name: str) -> None:
    """Raises ValueError if there is no encoder or decoder of this name; the message suggests similar names."""
    if name not in part_names(kind):
        close = difflib.get_close_matches(name, part_names(kind), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(part_names(kind))}"
        raise ValueError(f"no {kind.removesuffix('s')} of a tokenizer named {one_line(name)!r}; {hint}")


def split_spec(spec: str) -> tuple[str, list[str], str]:
    """Splits the spec of a tokenizer into encoder, methods and decoder.

    Raises:
        ValueError: it cannot be parsed.
    """
    if len(spec) > MAX_LENGTH:
        raise ValueError(f"a spec must have at most {MAX_LENGTH} characters, got {len(spec)}")
    try:
        node = ast.parse(spec.strip(), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"cannot read the spec {short(spec)}; write it like {_EXAMPLE}") from None
    if not (isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], ast.Gt)):
        raise ValueError(f"the spec of a tokenizer is encoder | methods > decoder, like {_EXAMPLE}; got {short(spec)}")
    chain: list[ast.expr] = []
    left = node.left
    while isinstance(left, ast.BinOp) and isinstance(left.op, ast.BitOr):
        chain.append(left.right)
        left = left.left
    return ast.unparse(left), [ast.unparse(link) for link in reversed(chain)], ast.unparse(node.comparators[0])


def read_part(kind: str, text: str) -> Link:
    """Reads an encoder or decoder, `name(argument=value, ...)`; the values of arguments are not checked.

    Raises:
        ValueError: the name of the part or of an argument is unknown.
    """
    node = ast.parse(text.strip(), mode="eval").body
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name):
        raise ValueError(f"cannot read {short(text)}; write a part like causal_conv(width=32)")
    name = call.func.id
    check_part_name(kind, name)
    link = read_values(call, name, short(text)[1:-1])
    known = constructor_arguments(_FOLDER / kind / f"{name}.py", name)
    assert known is not None, f"{kind}/{name}.py must define the class {name} with a constructor"
    names = [argument for argument, _ in link.named]
    check_argument_names(name, names, link.values, known)
    if len(link.values) > 1 or (link.values and known[0] in names) or len(set(names)) < len(names):
        raise ValueError(f"all arguments but the first must be named, and each given only once: {short(text)}")
    return link


def check_spec(spec: str) -> None:
    """Raises ValueError if the spec of a tokenizer cannot be parsed, or a name in it is unknown."""
    encoder, methods, decoder = split_spec(spec)
    read_part("encoders", encoder)
    for method in methods:
        read_links(method)
    read_part("decoders", decoder)
