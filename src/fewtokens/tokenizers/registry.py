"""The parts of tokenizers by name, and the spec strings that build them.

    "causal_conv(width=32) | fsq((8, 8, 8, 5, 5, 5)) > causal_conv(width=32)"
     encoder                 methods                   decoder

An encoder or decoder is a file of `fewtokens.tokenizers.encoders` or `.decoders` with one class, and has the name of
the file; methods are those of the library. Values are read with `ast.literal_eval`; nothing in a spec is executed.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import pkgutil
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

from fewtokens.core import registry
from fewtokens.core.method import Method
from fewtokens.core.plain import conform, one_line
from fewtokens.core.spec import Spec
from fewtokens.core.syntax import MAX_LENGTH, check_argument_names, short
from fewtokens.tokenizers.parts import Decoder, VideoEncoder

_EXAMPLE = "'causal_conv(width=32) | fsq > causal_conv(width=32)'"


@cache
def part_names(kind: str) -> tuple[str, ...]:
    """Returns the names of all parts of a kind, "encoders", "decoders" or "presets", without importing them."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / kind)])))


def get_part(kind: str, name: str) -> type[Any]:
    """Returns the class of an encoder or decoder.

    Raises:
        ValueError: there is none of this name; the message suggests similar names.
    """
    if name not in part_names(kind):
        close = difflib.get_close_matches(name, part_names(kind), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(part_names(kind))}"
        raise ValueError(f"no {kind.removesuffix('s')} of a tokenizer named {one_line(name)!r}; {hint}")
    module = import_module(f"fewtokens.tokenizers.{kind}.{name}")
    base = VideoEncoder if kind == "encoders" else Decoder
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    assert len(own) == 1, f"{module.__name__} must define one {base.__name__}, has {[cls.__name__ for cls in own]}"
    return own[0]


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


def build_part(kind: str, text: str, **defaults: Any) -> Any:
    """Builds an encoder or decoder from `name(argument=value, ...)`.

    Args:
        kind: "encoders" or "decoders".
        text: the spec.
        defaults: arguments that are used if the part has them and the spec does not set them.

    Raises:
        ValueError: the name or an argument is unknown, or a value has the wrong type or is out of range.
    """
    node = ast.parse(text.strip(), mode="eval").body
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name):
        raise ValueError(f"cannot read {short(text)}; write a part like causal_conv(width=32)")
    name = call.func.id
    part = get_part(kind, name)
    parameters = list(inspect.signature(part).parameters)
    try:
        values = [ast.literal_eval(value) for value in call.args]
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (ValueError, TypeError):
        raise ValueError(f"arguments in a spec must be numbers, strings, tuples or lists: {short(text)}") from None
    check_argument_names(name, named, values, parameters)
    if len(values) > 1 or (values and parameters[0] in named) or len(named) < len(call.keywords):
        raise ValueError(f"all arguments but the first must be named, and each given only once: {short(text)}")
    arguments = dict(zip(parameters, values, strict=False)) | named
    arguments = {key: value for key, value in defaults.items() if key in parameters} | arguments
    hints = get_type_hints(part.__init__)
    for argument, value in arguments.items():
        conform(value, hints.get(argument, Any), f"{name}: {argument}")
    return part(**arguments)


def build_parts(spec: str) -> tuple[VideoEncoder, list[Method], Decoder]:
    """Builds encoder, methods and decoder of a spec; each receives the number of channels of the part before it.

    Raises:
        ValueError: the spec is invalid, or encoder and decoder have different strides.
    """
    first, links, last = split_spec(spec)
    encoder: VideoEncoder = build_part("encoders", first)
    dim, methods = encoder.dim, []
    for link in links:
        (method,) = registry.build(link, dim=dim)
        methods.append(method)
        dim = getattr(method, "out_dim", dim)
    decoder: Decoder = build_part("decoders", last, dim=dim)
    if decoder.dim != dim:
        raise ValueError(f"{decoder.name} reads {decoder.dim} channels, but its input has {dim}: {short(spec)}")
    ends = {(part.stride, part.first_frame) for part in (encoder, decoder)}
    if len(ends) > 1:
        raise ValueError(
            f"encoder and decoder must have the same stride and first_frame, got {encoder.stride}, "
            f"{encoder.first_frame} and {decoder.stride}, {decoder.first_frame}: {short(spec)}"
        )
    return encoder, methods, decoder


def spec_of(encoder: Spec, methods: list[Method], decoder: Spec) -> str:
    """Returns the spec of a tokenizer, which `build_parts` reads."""
    return f"{' | '.join(part.spec for part in (encoder, *methods))} > {decoder.spec}"
