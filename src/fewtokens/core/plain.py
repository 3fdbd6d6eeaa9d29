"""Validates plain values read from a file, a header or a spec against type annotations."""

from __future__ import annotations

import dataclasses
import math
import re
import reprlib
import types
from collections.abc import Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

# Deeper than any real file, and well below Python's recursion limit.
MAX_DEPTH = 64


def conform(value: Any, kind: Any, label: str) -> Any:
    """Checks that a value is of a type, and returns it unchanged.

    Args:
        value: plain values, as read from JSON or a spec. A tuple counts as a list.
        kind: a type annotation: int, float (also accepts ints; must be finite), str, bool, None, list[X], Sequence[X],
            tuple[X, ...], tuple[X, Y], dict[str, X], X | Y, Literal[...], Any (any plain value), a TypedDict (extra
            keys are accepted) or a dataclass (extra keys are rejected; keys with a default may be missing). For the
            last two, `value` is a dict. A bool is not accepted as a number.
        label: prefix of the error message: a file name or an argument name.

    Raises:
        ValueError: one line: `label`, the path inside the value, the expected type and the actual value.
    """
    _check(value, kind, label, "", 0)
    return value


def _check(value: Any, kind: Any, label: str, path: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"{label}: nested too deeply")
    if kind is Any:
        _check_plain(value, label, path, depth)
        return
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        _check_union(value, parts, label, path, depth, kind)
        return
    if not _is_a(value, kind):
        at = f"{label}: {one_line(path.lstrip('.'))}" if path else label
        raise ValueError(f"{at} must be {_describe(kind)}, got {_show(value)}")
    if origin in (list, Sequence) or (origin is tuple and parts[1:] == (...,)):
        for index, entry in enumerate(value):
            _check(entry, parts[0], label, f"{path}[{index}]", depth + 1)
    elif origin is tuple:
        for index, (entry, part) in enumerate(zip(value, parts, strict=True)):
            _check(entry, part, label, f"{path}[{index}]", depth + 1)
    elif origin is dict:
        for name, entry in value.items():
            _check(name, parts[0], label, f"{path} key", depth + 1)
            _check(entry, parts[1], label, f"{path}.{name}", depth + 1)
    elif is_typeddict(kind) or dataclasses.is_dataclass(kind):
        _check_fields(value, kind, label, path, depth)


def _check_plain(value: Any, label: str, path: str, depth: int) -> None:
    if isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            _check(entry, Any, label, f"{path}[{index}]", depth + 1)
    elif isinstance(value, dict):
        for name, entry in value.items():
            _check(name, str, label, f"{path} key", depth + 1)
            _check(entry, Any, label, f"{path}.{name}", depth + 1)
    elif not (value is None or isinstance(value, str | int | float)):
        raise ValueError(f"{label}: {one_line(path.lstrip('.')) or 'it'} must be a plain value, got {_show(value)}")


def _check_union(value: Any, parts: tuple[Any, ...], label: str, path: str, depth: int, kind: Any) -> None:
    candidates = [part for part in parts if _is_a(value, part)]
    if not candidates:
        at = f"{label}: {one_line(path.lstrip('.'))}" if path else label
        raise ValueError(f"{at} must be {_describe(kind)}, got {_show(value)}")
    for index, part in enumerate(candidates):
        try:
            _check(value, part, label, path, depth)
            return
        except ValueError:
            if index == len(candidates) - 1:
                raise


def _check_fields(value: dict[str, Any], kind: Any, label: str, path: str, depth: int) -> None:
    hints = get_type_hints(kind)
    if dataclasses.is_dataclass(kind):
        fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
        missing = dataclasses.MISSING
        required = {n for n, f in fields.items() if f.default is missing and f.default_factory is missing}
        unknown = [str(name) for name in value if name not in fields]
        if unknown:
            raise ValueError(
                f"{label}: unknown key {one_line(', '.join(sorted(unknown)[:5]))}; known keys: {', '.join(fields)}"
            )
    else:
        required = set(kind.__required_keys__)
    absent = sorted(required - value.keys())
    if absent:
        raise ValueError(f"{label}: lacks {one_line(path.lstrip('.'))}{'.' if path else ''}{', '.join(absent)}")
    for name, hint in hints.items():
        if name in value:
            _check(value[name], hint, label, f"{path}.{name}", depth + 1)


def _is_a(value: Any, kind: Any) -> bool:
    """Whether the outer type of `value` matches; its elements are checked separately."""
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
        # An int that overflows a float is rejected.
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


_NAMES = {
    int: "a whole number", float: "a finite number", str: "a string", bool: "true or false", types.NoneType: "null",
    None: "null", list: "a list", Sequence: "a list", dict: "an object", Any: "anything",
}  # fmt: skip


def _describe(kind: Any) -> str:
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_describe(part) for part in parts))
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is tuple:
        return "a list" if parts[1:] == (...,) else f"a list of {len(parts)}"
    if is_typeddict(kind) or dataclasses.is_dataclass(kind):
        return "an object"
    return _NAMES[origin]


def _show(value: Any) -> str:
    return reprlib.repr(value)  # short, and no deeper than a few levels


def one_line(value: Any) -> str:
    """Formats a value from a file for an error message: at most 200 characters, without control characters."""
    # Memory addresses differ from run to run.
    text = re.sub(r" at 0x[0-9a-f]+", "", " ".join(str(value).split()))
    text = text if len(text) <= 200 else f"{text[:200]} ..."
    return text if text.isprintable() else repr(text)
