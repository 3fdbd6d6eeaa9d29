"""Reads numeric arrays from .mat files of version 5, the MATLAB default.

The reader of scipy crashes the process on some damaged files, which no caller can catch.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
# Double to uint64; the others are text, cells, structs and sparse arrays.
_NUMERIC = range(6, 16)
_COMPLEX = 0x0800
# Limit for a file, and for a decompressed variable.
_MAX_BYTES = 1 << 26


def read_array(path: str | Path, name: str) -> np.ndarray | None:
    """Reads the real array with that name and any number of axes; None if the file has none.

    Raises:
        ValueError: the file does not exist, is not a .mat of version 5, or is truncated or damaged, or the array is
            not numeric.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path}: a .mat must have at most {_MAX_BYTES >> 20} MiB")
    content = path.read_bytes()
    endian = content[126:_HEADER]
    if content.startswith(b"MATLAB 7.3"):
        raise ValueError(f"{path}: .mat of version 7.3; save it with -v7")
    try:
        if endian not in (b"IM", b"MI"):
            raise ValueError("no header of version 5")
        order = "<" if endian == b"IM" else ">"
        for kind, body in _elements(content[_HEADER:], order):
            if kind == _COMPRESSED:
                decompressed = zlib.decompressobj().decompress(body, _MAX_BYTES)
                kind, body = next(_elements(decompressed, order))
            if kind == _MATRIX and (array := _matrix(body, order, name)) is not None:
                return array
    except (ValueError, zlib.error, StopIteration) as error:
        reason = str(error) or "an empty variable"
        raise ValueError(f"{path}: cannot be read as .mat ({reason}); was it cut short?") from None
    return None


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """The type and the bytes of each element."""
    offset = 0
    while offset < len(content):
        if len(content) - offset < 8:
            raise ValueError("it ends in the header of an element")
        kind, size = map(int, np.frombuffer(content, f"{order}u4", 2, offset))
        start = offset + 8
        if kind >> 16:  # a small element: up to four bytes inside the header
            kind, size, start = kind & 0xFFFF, kind >> 16, offset + 4
            if size > 4:
                raise ValueError("a damaged element")
        if start + size > len(content):
            raise ValueError("it ends inside an element")
        yield kind, content[start : start + size]
        # Elements start at multiples of eight bytes, except after a compressed one, which is not padded.
        offset = start + size if kind == _COMPRESSED else offset + 8 * -(-(start + size - offset) // 8)


def _matrix(body: bytes, order: str, target: str) -> np.ndarray | None:
    """The array, if its name is `target`."""
    parts = _elements(body, order)
    (_, flags), (_, sizes), (_, name) = next(parts), next(parts), next(parts)
    if name.split(b"\0")[0].decode("latin1") != target:
        return None
    flag = int(np.frombuffer(flags, f"{order}u4")[0])
    shape = np.frombuffer(sizes, f"{order}i4").tolist()
    if flag & 0xFF not in _NUMERIC or flag & _COMPLEX:
        raise ValueError(f"{target} is not an array of real numbers")
    kind, values = next(parts)
    if kind not in _TYPES or min(shape, default=-1) < 0:
        raise ValueError(f"{target} is damaged")
    array = np.frombuffer(values, order + _TYPES[kind])
    if array.size != math.prod(shape):
        raise ValueError(f"{target} has {array.size} values, its header declares {math.prod(shape)}")
    return array.reshape(shape, order="F")
