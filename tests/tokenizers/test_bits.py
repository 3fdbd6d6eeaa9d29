"""Packing of codes: exact, of the stated length, and equal to the bits written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fewtokens.tokenizers.bits import bits_of, pack, packed_bytes, unpack


@pytest.mark.parametrize(("size", "bits"), [(1, 0), (2, 1), (3, 2), (1000, 10), (1024, 10), (1025, 11), (2**18, 18)])
def test_bits_of_a_size(size, bits):
    assert bits_of(size) == bits


@pytest.mark.parametrize("bits", [0, 1, 3, 7, 8, 10, 17, 18, 31, 33, 62])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 1000])
def test_round_trip(bits, count):
    values = np.random.default_rng(0).integers(0, 1 << bits, count)
    packed = pack(values, bits)
    assert packed.dtype == np.uint8
    assert packed.size == packed_bytes(count, bits) == int(np.ceil(bits * count / 8))
    assert np.array_equal(unpack(packed, bits, count), values)


def test_more_than_a_block():
    values = np.random.default_rng(0).integers(0, 2**18, (1 << 16) + 5)
    packed = pack(values, 18)
    assert packed.size == -(-18 * values.size // 8)  # spec: ceil(18 n / 8)
    assert np.array_equal(unpack(packed, 18, values.size), values)


def test_the_first_bit_of_a_value_counts_one():
    # 5 = 101 and 3 = 011 in 3 bits, lowest first: 1 0 1 | 1 1 0 -> 0b00011101.
    assert pack([5, 3], 3).tolist() == [0b00011101]


@pytest.mark.parametrize("values", [[4], [-1], [0, 1, 2, 3, 4]])
def test_values_out_of_range(values):
    with pytest.raises(ValueError, match=r"values must be in 0\.\.3 for 2 bits"):
        pack(values, 2)


def test_data_of_another_length():
    with pytest.raises(ValueError, match="10 values of 3 bits have 4 bytes, got 3"):
        unpack(np.zeros(3, np.uint8), 3, 10)
