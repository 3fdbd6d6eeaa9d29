"""Packs integers of few bits into bytes, exactly and without gaps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Values that are packed at a time; a multiple of 8, so that each block but the last ends with a byte.
_BLOCK = 1 << 16


def bits_of(size: int) -> int:
    """Returns the number of bits of a value in 0..size-1; 0 if there is only one."""
    return (size - 1).bit_length()


def packed_bytes(count: int, bits: int) -> int:
    """Returns the number of bytes of `count` packed values, ceil(bits * count / 8)."""
    return -(-bits * count // 8)


def pack(values: ArrayLike, bits: int) -> NDArray[np.uint8]:
    """Packs integers; value i has the bits i*bits to (i+1)*bits - 1, the first of which counts 1.

    Bit j of the result is `np.unpackbits(packed, bitorder="little")[j]`; the last byte is filled with zeros.

    Args:
        values: integers [n] in 0..2**bits - 1.
        bits: bits of a value, in 0..62.

    Returns:
        uint8 [ceil(bits * n / 8)].

    Raises:
        ValueError: a value is out of range.
    """
    array = np.asarray(values)
    if not 0 <= bits <= 62:
        raise ValueError(f"bits must be in 0..62, got {bits}")
    if array.size and (array.min() < 0 or int(array.max()) >= 1 << bits):
        raise ValueError(f"values must be in 0..{(1 << bits) - 1} for {bits} bits, got {array.min()}..{array.max()}")
    shifts = np.arange(bits)

    def block(part: NDArray[Any]) -> NDArray[np.uint8]:
        table = (part.astype(np.int64)[:, None] >> shifts) & 1
        return np.packbits(table.astype(np.uint8), axis=None, bitorder="little")

    parts = [block(array[start : start + _BLOCK]) for start in range(0, array.size, _BLOCK)]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint8)


def unpack(data: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int64]:
    """Returns the values that `pack` packed, int64 [count].

    Raises:
        ValueError: the data have another length or type.
    """
    if data.dtype != np.uint8:
        raise ValueError(f"packed values must be uint8, got {data.dtype}")
    if data.size != packed_bytes(count, bits):
        raise ValueError(f"{count} values of {bits} bits have {packed_bytes(count, bits)} bytes, got {data.size}")
    weights = np.left_shift(1, np.arange(bits), dtype=np.int64)

    def block(start: int) -> NDArray[np.int64]:
        number = min(_BLOCK, count - start)
        first = start * bits // 8
        part = data[first : first + packed_bytes(number, bits)]
        table = np.unpackbits(part, count=number * bits, bitorder="little").reshape(number, bits)
        values: NDArray[np.int64] = table.astype(np.int64) @ weights
        return values

    parts = [block(start) for start in range(0, count, _BLOCK)]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
