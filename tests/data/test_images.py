"""Images that are damaged or declare a wrong size, in files and in tars."""

from __future__ import annotations

import io
import re
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewtokens.data import ClipData, Transform, View, read_listing
from fewtokens.data.footage import find_footage, read_frames
from fewtokens.data.images import read_image
from fewtokens.data.masks import read_masks


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """A gray PNG that declares this size, whatever its data."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


BAD = {
    "large": (png(20_000, 20_000), "20000x20000|400000000 pixels|more than 89,[0-9,]+ pixels"),
    "larger": (png(2**31 - 1, 2**31 - 1), "pixels|cannot be read as"),
    "above the limit": (png(10_001, 10_000), "10001x10000|more than 89,[0-9,]+ pixels"),
    "cut": (png(8, 8, bytes(range(72)))[:60], "cannot be read as|is cut short or damaged"),
    "damaged": (png(8, 8, b"\0" * 72)[:50] + b"\xff" * 40, "cannot be read as|is cut short or damaged"),
    "program": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n",
        "cannot be read as|is cut short or damaged",
    ),
    "none": (b"", "cannot be read as|is empty"),
}


def write_tar(path: Path, content: bytes) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in (("0.png", content), ("0.cls", b"a"), ("1.png", png(8, 8, b"\0" * 72)), ("1.cls", b"b")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore:Image size")
def test_bad_images_are_refused_before_decoding(tmp_path, name):
    content, message = BAD[name]
    tar = write_tar(tmp_path / "a.tar", content)
    file = tmp_path / "set" / "a" / "0.png"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    for listing in (read_listing(tar), read_listing(tmp_path / "set")):
        sample = ClipData(listing, Transform(8), View(), training=False)[0]
        assert sample.clip is None
        assert re.search(message, sample.broken)
    for source in (tar, tmp_path / "set"):
        (item, *_) = find_footage(source).items
        with pytest.raises(ValueError, match=message if source == tar else "0.png: ") as error:
            read_frames(item, lambda count: [0])
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=message):
        read_masks([file])


def test_good_image_is_read(tmp_path):
    assert read_image(png(100, 50, b"\0" * 101 * 50), "x").shape == (3, 50, 100)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "GIF"])
def test_formats(kind):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 6, 3), 120, np.uint8)).save(buffer, kind)
    pixels = read_image(buffer.getvalue(), "x")
    assert pixels.shape == (3, 8, 6)
    assert (pixels.int() - 120).abs().max() < 4


class TestPackedFrames:
    @pytest.mark.parametrize(
        "head",
        [
            f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({size}, 8, 8, 3), }}"
            for size in ("10**9", "999999999999999", "-3", "True", "'a'", "3.5", "9" * 30, "(" * 200)
        ]
        + ["[" * 5000, "{}", "'x'", "", "__import__('os')", "{'descr': '|u1', 'fortran_order': 3, 'shape': 7, }"],
    )
    def test_headers_are_not_trusted(self, tmp_path, head):
        text = head.encode() + b"\n"
        (tmp_path / "v.npy").write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + b"\0" * 600)
        with pytest.raises(
            ValueError, match=r"v.npy: (not an array that can be memory-mapped|frames must be uint8)"
        ) as error:
            read_frames(find_footage(tmp_path / "v.npy").items[0], lambda count: [0])
        assert "\n" not in str(error.value)

    def test_other_arrays(self, tmp_path):
        np.savez(tmp_path / "v.npz", a=np.zeros(3))
        (tmp_path / "v.npz").rename(tmp_path / "v.npy")
        with pytest.raises(ValueError, match="must be an array, got an archive"):
            read_frames(find_footage(tmp_path / "v.npy").items[0], lambda count: [0])
