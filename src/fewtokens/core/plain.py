"""Plain values that came from a file, a header or a spec, checked before anything uses them."""

from __future__ import annotations

import dataclasses
import math
import re
import reprlib
import types
from collections.abc import Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

# Deeper than anything that is written on purpose, far from Python's own limit.
MAX_DEPTH = 64


def conform(value: Any, kind: Any, what: str) -> Any:
    """Returns `value` if it is of `kind`, otherwise says where it is not.

    Args:
        value: plain values, as JSON or a spec gives them. A tuple counts as a list.
        kind: a type in the form of annotations: int, float (takes whole numbers too), str, bool, None, list[X],
            Sequence[X], tuple[X, ...], tuple[X, Y], dict[str, X], X | Y, Literal[...], Any (any plain value), a
            TypedDict or a dataclass (a dict with these keys; others are refused for a dataclass, and those with a
            default may be absent; a dict is returned). True is no number, and a float is finite.
        what: begins the message, a file's name or an argument's.

    Raises:
        ValueError: one line: `what`, the place in it, what is wanted and what is there.
    """
    _check(value, kind, what, "", 0)
    return value


def _check(value: Any, kind: Any, what: str, place: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"{what}: nested too deeply")
    if kind is Any:
        _check_plain(value, what, place, depth)
        return
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        _check_union(value, parts, what, place, depth, kind)
        return
    if not _is_a(value, kind):
        at = f"{what}: {in_a_line(place.lstrip('.'))}" if place else what
        raise ValueError(f"{at} must be {_say(kind)}, not {_show(value)}")
    if origin in (list, Sequence) or (origin is tuple and parts[1:] == (...,)):
        for number, entry in enumerate(value):
            _check(entry, parts[0], what, f"{place}[{number}]", depth + 1)
    elif origin is tuple:
        for number, (entry, part) in enumerate(zip(value, parts, strict=True)):
            _check(entry, part, what, f"{place}[{number}]", depth + 1)
    elif origin is dict:
        for name, entry in value.items():
            _check(name, parts[0], what, f"{place} a key", depth + 1)
            _check(entry, parts[1], what, f"{place}.{name}", depth + 1)
    elif is_typeddict(kind) or dataclasses.is_dataclass(kind):
        _check_fields(value, kind, what, place, depth)


def _check_plain(value: Any, what: str, place: str, depth: int) -> None:
    if isinstance(value, list | tuple):
        for number, entry in enumerate(value):
            _check(entry, Any, what, f"{place}[{number}]", depth + 1)
    elif isinstance(value, dict):
        for name, entry in value.items():
            _check(name, str, what, f"{place} a key", depth + 1)
            _check(entry, Any, what, f"{place}.{name}", depth + 1)
    elif not (value is None or isinstance(value, str | int | float)):
        raise ValueError(f"{what}: {in_a_line(place.lstrip('.')) or 'it'} must be a plain value, not {_show(value)}")


def _check_union(value: Any, parts: tuple[Any, ...], what: str, place: str, depth: int, kind: Any) -> None:
    fitting = [part for part in parts if _is_a(value, part)]
    if not fitting:
        at = f"{what}: {in_a_line(place.lstrip('.'))}" if place else what
        raise ValueError(f"{at} must be {_say(kind)}, not {_show(value)}")
    for number, part in enumerate(fitting):
        try:
            _check(value, part, what, place, depth)
            return
        except ValueError:
            if number == len(fitting) - 1:
                raise


def _check_fields(value: dict[str, Any], kind: Any, what: str, place: str, depth: int) -> None:
    hints = get_type_hints(kind)
    if dataclasses.is_dataclass(kind):
        fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
        absent = dataclasses.MISSING
        required = {n for n, f in fields.items() if f.default is absent and f.default_factory is absent}
        unknown = [str(name) for name in value if name not in fields]
        if unknown:
            raise ValueError(
                f"{what}: has no {in_a_line(', '.join(sorted(unknown)[:5]))} here; it takes {', '.join(fields)}"
            )
    else:
        required = set(kind.__required_keys__)
    lacking = sorted(required - value.keys())
    if lacking:
        raise ValueError(f"{what}: lacks {in_a_line(place.lstrip('.'))}{'.' if place else ''}{', '.join(lacking)}")
    for name, hint in hints.items():
        if name in value:
            _check(value[name], hint, what, f"{place}.{name}", depth + 1)


def _is_a(value: Any, kind: Any) -> bool:
    """Whether the outside of `value` fits; what it holds is looked at afterwards."""
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_is_a(value, part) for part in parts)
    if kind is None or kind is types.NoneType:
        return value is None
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in parts)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        # A whole number too long for a float is no float either.
        return isinstance(value, int | float) and not isinstance(value, bool) and _finite(value)
    if origin in (list, Sequence):
        return isinstance(value, list | tuple)
    if origin is tuple:
        return isinstance(value, list | tuple) and (parts[1:] == (...,) or len(parts) == len(value))
    if origin is dict or is_typeddict(kind) or dataclasses.is_dataclass(kind):
        return isinstance(value, dict)
    assert kind in (str, bool), f"no rule for {kind}"
    return isinstance(value, kind)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


_WORDS = {
    int: "a whole number", float: "a finite number", str: "text", bool: "true or false", types.NoneType: "null",
    None: "null", list: "a list", Sequence: "a list", dict: "an object", Any: "anything",
}  # fmt: skip


def _say(kind: Any) -> str:
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_say(part) for part in parts))
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is tuple:
        return "a list" if parts[1:] == (...,) else f"a list of {len(parts)}"
    if is_typeddict(kind) or dataclasses.is_dataclass(kind):
        return "an object"
    return _WORDS[origin]


def _show(value: Any) -> str:
    return reprlib.repr(value)  # short, and no deeper than a few levels


def in_a_line(value: Any) -> str:
    """Something out of a file, for a message: short, and without line breaks and control characters."""
    # Where an object lies in memory is another place each time.
    text = re.sub(r" at 0x[0-9a-f]+", "", " ".join(str(value).split()))
    text = text if len(text) <= 200 else f"{text[:200]} ..."
    return text if text.isprintable() else repr(text)
