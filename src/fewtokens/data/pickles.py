"""Reads pickles of plain values and numpy arrays without unpickling.

A pickle is a program that can call anything, modify what it calls and allocate memory for any declared size. This
module therefore interprets only the instructions that plain data needs: containers, numbers, text and the calls that
create numpy arrays, which it implements itself.
"""

from __future__ import annotations

import math
import mmap
import pickletools
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, ClassVar, cast

import numpy as np

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# Opcodes whose argument is the value itself.
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_SKIPPED = {"PROTO", "FRAME", "STOP"}
# The deepest nesting of lists of numbers, and the bytes that may be created whatever the size of the file.
_MAX_AXES = 6
_MIN_BUDGET = 1 << 24


class RefusedError(ValueError):
    """The pickle uses a name or an instruction that plain data does not need."""


class _Name:
    """A function or class that a pickle may call; the allowed modules are those of numpy 1 and 2."""

    allowed: ClassVar = {
        ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"), ("collections", "OrderedDict"),
        ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"),
        ("numpy.core.numeric", "_frombuffer"), ("numpy._core.numeric", "_frombuffer"),
    }  # fmt: skip

    def __init__(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise RefusedError("uses a name that is not text")
        if (module, name) not in self.allowed:
            raise RefusedError(f"uses {' '.join(f'{module[:60]}.{name[:60]}'.split())}")
        self.name = name


class _Dtype:
    """A numpy dtype of numbers or objects."""

    def __init__(self, code: str) -> None:
        if code[:1] not in tuple("biufO") or code[1:] not in ("", "1", "2", "4", "8", "16"):
            raise RefusedError(f"has an array of {code[:40]!r}")
        self.code, self.order = code, "="

    def array(self, raw: Any, shape: Any, order: str, budget: MemoryBudget) -> Any:
        """Creates the array from its bytes; a list if its elements are objects."""
        sizes = [_check_size(size) for size in shape]
        if self.code[0] == "O":
            if not isinstance(raw, list) or math.prod(sizes) != len(raw):
                raise ValueError("a truncated array of objects")
            return raw
        data = _bytes(raw, budget) if isinstance(raw, str) else raw
        return np.frombuffer(data, np.dtype(self.order + self.code)).reshape(sizes, order="F" if order == "F" else "C")


class MemoryBudget:
    """A limit on created bytes: a few repeated instructions can create much more than the size of the file."""

    def __init__(self, limit: int) -> None:
        self._remaining = self._limit = limit

    def spend(self, count: int) -> None:
        """Subtracts bytes; raises a ValueError when the limit is exceeded."""
        self._remaining -= count
        if self._remaining < 0:
            raise ValueError(f"expands to more than {self._limit >> 20} MiB of repeated data")


class _Array:
    """A numpy array that is created before its content is known."""

    value: Any = None


def _bytes(text: str, budget: MemoryBudget) -> bytes:
    budget.spend(len(text))
    return text.encode("latin1")


def _check_size(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError("a size is not a non-negative integer")
    return value


def read_pickle(path: Path) -> Any:
    """Reads a pickle of lists, tuples (returned as lists), dicts, numbers, text, bytes, None and numpy arrays.

    Objects that the pickle shares stay shared, so the memory of the result is bounded by the size of the file.
    `to_array` checks the size of lists before it converts them.

    Raises:
        RefusedError: the pickle uses anything else; one line without the name of the file.
        ValueError: the pickle is truncated or damaged; one line without the name of the file.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise ValueError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return _resolve_arrays(_run(content, MemoryBudget(_MIN_BUDGET + 4 * len(content))))
            except RefusedError:
                raise
            except Exception as error:  # a damaged pickle can raise any error
                raise ValueError(" ".join(f"{type(error).__name__} {error}".split())[:120]) from None


def _run(content: mmap.mmap, budget: MemoryBudget) -> Any:
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks below each mark
    memo: dict[int, Any] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(cast("IO[bytes]", content)):
        name = opcode.name
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name in ("TUPLE", "LIST", "DICT", "APPENDS", "SETITEMS", "POP_MARK"):
            top, stack = stack, below.pop()
            if name in ("TUPLE", "LIST"):
                stack.append(top)
            elif name == "DICT":
                stack.append(_put({}, top))
            elif name == "APPENDS":
                _list(stack[-1]).extend(top)
            elif name == "SETITEMS":
                _put(stack[-1], top)
        elif name in ("EMPTY_TUPLE", "EMPTY_LIST"):
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack[-int(name[5]) :] = [_top(stack, int(name[5]))]
        elif name == "APPEND":
            value = stack.pop()
            _list(stack[-1]).append(value)
        elif name == "SETITEM":
            pair = _top(stack, 2)
            del stack[-2:]
            _put(stack[-1], pair)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "POP":
            if stack:
                stack.pop()
            else:
                stack = below.pop()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "GLOBAL":
            stack.append(_Name(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            module, attribute = _top(stack, 2)
            stack[-2:] = [_Name(module, attribute)]
        elif name == "REDUCE":
            function, values = _top(stack, 2)
            stack[-2:] = [_call(function, _list(values), budget)]
        elif name == "BUILD":
            state = stack.pop()
            _build(stack[-1], _list(state), budget)
        elif name not in _SKIPPED:
            raise RefusedError(f"uses {name}")
    return stack[-1]


def _top(stack: list[Any], count: int) -> list[Any]:
    if len(stack) < count:
        raise ValueError("the stack is too short")
    return stack[-count:]


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("a value that must be a list is not one")
    return value


def _put(target: Any, pairs: list[Any]) -> dict[Any, Any]:
    """Adds alternating keys and values to a dict.

    Hashes of text are unpredictable and there are too few small numbers, so no file can make all keys collide.
    """
    if not isinstance(target, dict) or len(pairs) % 2:
        raise ValueError("a value that must be a dict is not one")
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        if not isinstance(key, str | bytes) and not (isinstance(key, int) and abs(key) < 1 << 31):
            raise RefusedError(f"has a dict with keys of type {type(key).__name__}")
        target[key] = value
    return target


def _call(function: Any, values: list[Any], budget: MemoryBudget) -> Any:
    if not isinstance(function, _Name):
        raise RefusedError("calls something that is not a function")
    if function.name in ("ndarray", "_reconstruct"):
        return _Array()
    if function.name == "dtype":
        if not isinstance(values[0], str | bytes):
            raise RefusedError("has an array with a dtype that is not text")
        return _Dtype(values[0] if isinstance(values[0], str) else values[0].decode("ascii"))
    if function.name == "encode":
        text, codec = values
        if not isinstance(text, str) or codec != "latin1":
            raise RefusedError("has text in a codec other than latin1")
        return _bytes(text, budget)
    if function.name == "OrderedDict":
        pairs = [_list(pair) for pair in _list(values[0] if values else [])]
        budget.spend(sum(100 + 8 * len(pair) for pair in pairs))
        return _put({}, [part for pair in pairs for part in pair])
    if function.name == "scalar":
        dtype, raw = values
        shape, order = [], "C"
    else:
        raw, dtype, shape, order = values
    if not isinstance(dtype, _Dtype):
        raise ValueError("an array without a dtype")
    return dtype.array(raw, _list(shape), order, budget)


def _build(target: Any, state: list[Any], budget: MemoryBudget) -> None:
    if isinstance(target, _Array):
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype):
            raise ValueError("an array without a dtype")
        target.value = dtype.array(raw, _list(shape), "F" if fortran else "C", budget)
    elif isinstance(target, _Dtype):
        target.order = state[1] if state[1] in ("<", ">") else "="
    else:
        raise RefusedError(f"sets the state of a {type(target).__name__.strip('_')}")


def _resolve_arrays(value: Any) -> Any:
    """Replaces each `_Array` with its content, visiting each container once."""
    root = [value]
    visited: set[int] = set()
    pending: list[Any] = [root]
    while pending:
        container = pending.pop()
        if id(container) in visited:
            continue
        visited.add(id(container))
        keys: Iterable[Any] = container if isinstance(container, dict) else range(len(container))
        for key in keys:
            value = container[key]
            if isinstance(value, _Array):
                if (value := value.value) is None:
                    raise ValueError("an array without content")
                container[key] = value
            if isinstance(value, list | dict):
                pending.append(value)
    return root[0]


def to_array(value: Any, budget: MemoryBudget, axes: int = 0) -> np.ndarray:
    """Converts a number, an array or a nested list of these to an array; spends its size from the budget first.

    Raises:
        ValueError: the value has another type, lists have different lengths, or the budget is exceeded.
    """
    budget.spend(value.nbytes if isinstance(value, np.ndarray) else 8)
    if isinstance(value, list) and axes < _MAX_AXES:
        return np.array([to_array(entry, budget, axes + 1) for entry in value])
    if not isinstance(value, np.ndarray | int | float):
        raise ValueError(f"contains a {type(value).__name__}")
    return np.asarray(value)
