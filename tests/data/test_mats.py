"""Arrays from .mat files, compared with the writer of scipy."""

from __future__ import annotations

import contextlib
import random
import struct
import zlib

import numpy as np
import pytest

from fewtokens.data.mats import read_array

io = pytest.importorskip("scipy.io")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
@pytest.mark.parametrize("shape", [(2, 15, 4), (2, 15), (1, 1), (3, 1), (1, 0), (2, 3, 4, 5)])
def test_files_of_scipy(tmp_path, compressed, kind, shape):
    path = tmp_path / "a.mat"
    array = (np.arange(np.prod(shape)) % 100).reshape(shape).astype(kind)
    other = {"before": np.ones((3, 3)), "text": "walk", "cell": np.array([1, "a"], dtype=object), "s": {"x": 1}}
    io.savemat(path, {**other, "pos_img": array, "after": np.eye(2)}, do_compression=compressed)
    result = read_array(path, "pos_img")
    np.testing.assert_array_equal(result, array)
    assert result.dtype == array.dtype
    assert read_array(path, "nothing") is None
    with pytest.raises(ValueError, match="text is not an array of real numbers"):
        read_array(path, "text")
    io.savemat(path, {"pos_img": np.array([1 + 2j])})
    with pytest.raises(ValueError, match="not an array of real numbers"):
        read_array(path, "pos_img")


def test_invalid_files(tmp_path):
    path = tmp_path / "a.mat"
    with pytest.raises(ValueError, match="no such file"):
        read_array(path, "x")
    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    bomb = zlib.compress(struct.pack("<II", 14, 1 << 31) + b"\0" * (100 << 20), 9)
    for content, message in [
        (b"", "cut short"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM", "version 7.3; save it with -v7"),
        (b"x" * 500, "no header of version 5"),
        (head + b"abc", "ends in the header"),
        (head + struct.pack("<II", 14, 1 << 31), "ends inside an element"),
        (head + struct.pack("<II", 15, 4) + b"abcd", "cannot be read as .mat"),
        (head + struct.pack("<II", 15, len(bomb)) + bomb, "ends inside an element"),
        (head + struct.pack("<II", 14, 0), "an empty variable"),
        (head + struct.pack("<HH", 14, 9) + b"abcd", "a damaged element"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as error:
            read_array(path, "x")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("compressed", [False, True])
def test_damage_never_crashes_the_process(tmp_path, compressed):
    path, rng = tmp_path / "a.mat", random.Random(0)
    io.savemat(path, {"pos_img": np.ones((2, 15, 4))}, do_compression=compressed)
    intact = path.read_bytes()
    for _ in range(500):
        content = bytearray(intact)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(100, len(content))] = rng.choice((0, 1, 14, 15, 127, 255, rng.randrange(256)))
        path.write_bytes(content)
        with contextlib.suppress(ValueError):
            assert read_array(path, "pos_img") is None or read_array(path, "pos_img").dtype.kind in "iuf"
