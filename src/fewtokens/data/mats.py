"""Arrays of numbers out of .mat files (version 5, what MATLAB writes by default), read here.

scipy's reader ends the whole process on some damaged files, which no caller can catch.
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
# Double to uint64; the others are text, cells, structs, sparse arrays.
_NUMBERS = range(6, 16)
_COMPLEX = 0x0800
# A file, and what one variable unfolds to.
_MOST_BYTES = 1 << 26


def read_array(path: str | Path, name: str) -> np.ndarray | None:
    """The array of that name, real numbers of any axes; None if there is none.

    Raises:
        ValueError: no such file, no .mat of version 5, cut or damaged, or an array that is not of numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path}: larger than any .mat of a data set of clips")
    content = path.read_bytes()
    mark = content[126:_HEADER]
    if content.startswith(b"MATLAB 7.3"):
        raise ValueError(f"{path}: a .mat of version 7.3; save it with -v7")
    try:
        if mark not in (b"IM", b"MI"):
            raise ValueError("no header of version 5")
        order = "<" if mark == b"IM" else ">"
        for kind, body in _elements(content[_HEADER:], order):
            if kind == _COMPRESSED:
                unfolded = zlib.decompressobj().decompress(body, _MOST_BYTES)
                kind, body = next(_elements(unfolded, order))
            if kind == _MATRIX and (found := _matrix(body, order, name)) is not None:
                return found
    except (ValueError, zlib.error, StopIteration) as error:
        reason = str(error) or "an empty variable"
        raise ValueError(f"{path}: not a .mat that can be read ({reason}); was it cut short?") from None
    return None


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """The type and the bytes of each element."""
    place = 0
    while place < len(content):
        if len(content) - place < 8:
            raise ValueError("it ends in the head of an element")
        kind, size = map(int, np.frombuffer(content, f"{order}u4", 2, place))
        start = place + 8
        if kind >> 16:  # up to four bytes, inside the head
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
            if size > 4:
                raise ValueError("a damaged element")
        if start + size > len(content):
            raise ValueError("it ends before an element does")
        yield kind, content[start : start + size]
        # Elements begin at multiples of eight bytes; after compressed ones there is no padding.
        place = start + size if kind == _COMPRESSED else place + 8 * -(-(start + size - place) // 8)


def _matrix(body: bytes, order: str, wanted: str) -> np.ndarray | None:
    """The array, if it is the one that is wanted."""
    parts = _elements(body, order)
    (_, flags), (_, sizes), (_, name) = next(parts), next(parts), next(parts)
    if name.split(b"\0")[0].decode("latin1") != wanted:
        return None
    flag = int(np.frombuffer(flags, f"{order}u4")[0])
    shape = np.frombuffer(sizes, f"{order}i4").tolist()
    if flag & 0xFF not in _NUMBERS or flag & _COMPLEX:
        raise ValueError(f"{wanted} is no array of real numbers")
    kind, values = next(parts)
    if kind not in _TYPES or min(shape, default=-1) < 0:
        raise ValueError(f"{wanted} is damaged")
    array = np.frombuffer(values, order + _TYPES[kind])
    if array.size != math.prod(shape):
        raise ValueError(f"{wanted} has {array.size} numbers, {math.prod(shape)} are declared")
    return array.reshape(shape, order="F")
