"""Pickles of plain values and numpy arrays, read without unpickling.

A pickle is a program, and its reader can be told to call anything, to change what it calls, and to take memory for
sizes that are only declared. So its instructions are carried out here, the few that plain data needs: containers,
numbers, text, and the calls by which numpy arrays are written, to which this module has answers of its own.
"""

from __future__ import annotations

import math
import mmap
import pickletools
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, ClassVar, cast

import numpy as np

_VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_GIVEN = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_SKIPPED = {"PROTO", "FRAME", "STOP"}
# Axes of an array, the deepest that lists of numbers are nested.
_MOST_AXES = 6
_MOST_FREE = 1 << 24


class RefusedError(ValueError):
    """The pickle names or does something that plain data does not need."""


class _Name:
    """What a pickle may call; the modules are those of numpy 1 and of numpy 2."""

    known: ClassVar = {
        ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"), ("collections", "OrderedDict"),
        ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"),
        ("numpy.core.numeric", "_frombuffer"), ("numpy._core.numeric", "_frombuffer"),
    }  # fmt: skip

    def __init__(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise RefusedError("names something by what is no text")
        if (module, name) not in self.known:
            raise RefusedError(f"names {' '.join(f'{module[:60]}.{name[:60]}'.split())}")
        self.name = name


class _Dtype:
    """A numpy dtype: numbers of one kind, or objects, each an element of its own."""

    def __init__(self, said: str) -> None:
        if said[:1] not in tuple("biufO") or said[1:] not in ("", "1", "2", "4", "8", "16"):
            raise RefusedError(f"has an array of {said[:40]!r}")
        self.said, self.order = said, "="

    def array(self, raw: Any, shape: Any, order: str, budget: Budget) -> Any:
        """The array of these bytes; a list where its elements are objects."""
        sizes = [_whole(size) for size in shape]
        if self.said[0] == "O":
            if not isinstance(raw, list) or math.prod(sizes) != len(raw):
                raise ValueError("an array of objects that is cut short")
            return raw
        data = _bytes(raw, budget) if isinstance(raw, str) else raw
        return np.frombuffer(data, np.dtype(self.order + self.said)).reshape(sizes, order="F" if order == "F" else "C")


class Budget:
    """Bytes that may be made, for what a few instructions can make over and over is not bounded by the file."""

    def __init__(self, limit: int) -> None:
        self._left = self._limit = limit

    def spend(self, count: int) -> None:
        """Raises a ValueError when the limit is passed."""
        self._left -= count
        if self._left < 0:
            raise ValueError(f"holds the same so often that it comes to more than {self._limit >> 20} MiB")


class _Array:
    """A numpy array between its making and its content."""

    value: Any = None


def _bytes(text: str, budget: Budget) -> bytes:
    budget.spend(len(text))
    return text.encode("latin1")


def _whole(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError("a size that is no whole number")
    return value


def read_pickle(path: Path) -> Any:
    """What a pickle holds: lists (tuples too), dicts, numbers, text, bytes, None, numpy arrays.

    What the pickle shares stays shared, so the memory that the result takes is bounded by the size of the file.
    Before lists become arrays, `to_array` counts what they come to.

    Raises:
        RefusedError: it names or does something else; one line without the name of the file.
        ValueError: it is cut or damaged; likewise.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise ValueError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return _with_arrays(_run(content, Budget(_MOST_FREE + 4 * len(content))))
            except RefusedError:
                raise
            except Exception as error:  # a broken pickle fails in any way it likes
                raise ValueError(" ".join(f"{type(error).__name__} {error}".split())[:120]) from None


def _run(content: mmap.mmap, budget: Budget) -> Any:
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks under each mark
    memo: dict[int, Any] = {}
    given: Any
    for opcode, given, _ in pickletools.genops(cast("IO[bytes]", content)):
        name = opcode.name
        if name in _GIVEN:
            stack.append(given)
        elif name in _VALUES:
            stack.append(_VALUES[name])
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
            stack[-int(name[5]) :] = [_several(stack, int(name[5]))]
        elif name == "APPEND":
            value = stack.pop()
            _list(stack[-1]).append(value)
        elif name == "SETITEM":
            pair = _several(stack, 2)
            del stack[-2:]
            _put(stack[-1], pair)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[given] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[given])
        elif name == "POP":
            if stack:
                stack.pop()
            else:
                stack = below.pop()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "GLOBAL":
            stack.append(_Name(*given.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            module, called = _several(stack, 2)
            stack[-2:] = [_Name(module, called)]
        elif name == "REDUCE":
            function, values = _several(stack, 2)
            stack[-2:] = [_call(function, _list(values), budget)]
        elif name == "BUILD":
            state = stack.pop()
            _build(stack[-1], _list(state), budget)
        elif name not in _SKIPPED:
            raise RefusedError(f"uses {name}")
    return stack[-1]


def _several(stack: list[Any], count: int) -> list[Any]:
    if len(stack) < count:
        raise ValueError("it takes more than it has made")
    return stack[-count:]


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("it treats something else as a list")
    return value


def _put(target: Any, pairs: list[Any]) -> dict[Any, Any]:
    """Adds names and values, one after the other, to a dict.

    The hashes of text cannot be foreseen, and small numbers are too few, so no file makes all names collide.
    """
    if not isinstance(target, dict) or len(pairs) % 2:
        raise ValueError("it treats something else as a dict")
    for name, value in zip(pairs[::2], pairs[1::2], strict=True):
        if not isinstance(name, str | bytes) and not (isinstance(name, int) and abs(name) < 1 << 31):
            raise RefusedError(f"has a dict by {type(name).__name__}")
        target[name] = value
    return target


def _call(function: Any, values: list[Any], budget: Budget) -> Any:
    if not isinstance(function, _Name):
        raise RefusedError("calls what is no function")
    if function.name in ("ndarray", "_reconstruct"):
        return _Array()
    if function.name == "dtype":
        if not isinstance(values[0], str | bytes):
            raise RefusedError("has an array of something else")
        return _Dtype(values[0] if isinstance(values[0], str) else values[0].decode("ascii"))
    if function.name == "encode":
        text, codec = values
        if not isinstance(text, str) or codec != "latin1":
            raise RefusedError("has text in another codec")
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
        raise ValueError("an array without its type")
    return dtype.array(raw, _list(shape), order, budget)


def _build(target: Any, state: list[Any], budget: Budget) -> None:
    if isinstance(target, _Array):
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype):
            raise ValueError("an array without its type")
        target.value = dtype.array(raw, _list(shape), "F" if fortran else "C", budget)
    elif isinstance(target, _Dtype):
        target.order = state[1] if state[1] in ("<", ">") else "="
    else:
        raise RefusedError(f"sets the state of a {type(target).__name__.strip('_')}")


def _with_arrays(top: Any) -> Any:
    """Puts the content of arrays in their place, in each container once."""
    whole = [top]
    seen: set[int] = set()
    waiting: list[Any] = [whole]
    while waiting:
        holder = waiting.pop()
        if id(holder) in seen:
            continue
        seen.add(id(holder))
        places: Iterable[Any] = holder if isinstance(holder, dict) else range(len(holder))
        for place in places:
            value = holder[place]
            if isinstance(value, _Array):
                if (value := value.value) is None:
                    raise ValueError("an array without its content")
                holder[place] = value
            if isinstance(value, list | dict):
                waiting.append(value)
    return whole[0]


def to_array(value: Any, budget: Budget, axes: int = 0) -> np.ndarray:
    """A number, an array, or a list of either, as an array; counted before it is made.

    Raises:
        ValueError: something else, lists of different lengths, or more than the budget.
    """
    budget.spend(value.nbytes if isinstance(value, np.ndarray) else 8)
    if isinstance(value, list) and axes < _MOST_AXES:
        return np.array([to_array(entry, budget, axes + 1) for entry in value])
    if not isinstance(value, np.ndarray | int | float):
        raise ValueError(f"has a {type(value).__name__} among its numbers")
    return np.asarray(value)
