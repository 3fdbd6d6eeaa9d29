"""Builds the parts of tokenizers from spec strings, see `fewtokens.core.tokenizer_syntax`.

An encoder or decoder is a file of `fewtokens.tokenizers.encoders` or `.decoders` with one class, and has the name of
the file; methods are those of the library.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any, get_type_hints

from fewtokens.core import registry
from fewtokens.core.method import Method
from fewtokens.core.plain import conform
from fewtokens.core.spec import Spec
from fewtokens.core.syntax import short
from fewtokens.core.tokenizer_syntax import check_part_name, read_part, split_spec
from fewtokens.tokenizers.parts import Decoder, VideoEncoder


def get_part(kind: str, name: str) -> type[Any]:
    """Returns the class of an encoder or decoder.

    Raises:
        ValueError: there is none of this name; the message suggests similar names.
    """
    check_part_name(kind, name)
    module = import_module(f"fewtokens.tokenizers.{kind}.{name}")
    base = VideoEncoder if kind == "encoders" else Decoder
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    assert len(own) == 1, f"{module.__name__} must define one {base.__name__}, has {[cls.__name__ for cls in own]}"
    return own[0]


def build_part(kind: str, text: str, **defaults: Any) -> Any:
    """Builds an encoder or decoder from `name(argument=value, ...)`.

    Args:
        kind: "encoders" or "decoders".
        text: the spec.
        defaults: arguments that are used if the part has them and the spec does not set them.

    Raises:
        ValueError: the name or an argument is unknown, or a value has the wrong type or is out of range.
    """
    name, values, named, _ = read_part(kind, text)
    part = get_part(kind, name)
    parameters = list(inspect.signature(part).parameters)
    arguments = dict(zip(parameters, values, strict=False)) | dict(named)
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
