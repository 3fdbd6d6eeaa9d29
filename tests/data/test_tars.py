"""Tars of every format, and invalid ones."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import random
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from fewtokens.data import ClipData, Transform, View, read_listing
from fewtokens.data.footage import find_footage, read_frames
from fewtokens.data.tars import copy_member, list_members, read_member

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
LONG = "p" * 90 + "/" + "n" * 90 + ".png"


def put(tar: tarfile.TarFile, name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **more: object) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.type = len(data), kind
    for key, value in more.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(data))


def png_bytes(gray: int = 100) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), gray, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(params=FORMATS)
def archive(request, tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=request.param) as tar:
        put(tar, "folder", kind=tarfile.DIRTYPE)
        put(tar, "folder/0.png", png_bytes(10))
        put(tar, "folder/0.cls", b"cat")
        put(tar, LONG, png_bytes(20))
        put(tar, LONG[:-3] + "json", b'{"label": "dog"}')
        put(tar, "ü ä.png", png_bytes(30))
        put(tar, "ü ä.cls", "\ufeffcat\n".encode())
        put(tar, "link.png", kind=tarfile.SYMTYPE, linkname="/etc/passwd")
        put(tar, "hard.png", kind=tarfile.LNKTYPE, linkname="folder/0.png")
        put(tar, "device.png", kind=tarfile.CHRTYPE, devmajor=1, devminor=5)
        put(tar, "pipe.png", kind=tarfile.FIFOTYPE)
        put(tar, "empty.png")
        put(tar, "last.txt", b"x" * 512)
    return path


def test_index_equals_that_of_tarfile(archive):
    with tarfile.open(archive) as tar:
        expected = [(one.name, one.offset_data, one.size) for one in tar if one.isfile()]
    assert [tuple(one) for one in list_members(archive)] == expected
    assert len(expected) == 8


def test_samples(archive):
    with pytest.warns(UserWarning, match=r"skipped 1 line without a label.*a.tar::/empty"):
        listing = read_listing(archive)
    assert [(item.member, listing.classes[item.labels[0]]) for item in listing.items] == [
        ("folder/0.png", "cat"), (LONG, "dog"), ("ü ä.png", "cat"),
    ]  # fmt: skip
    data = ClipData(listing, Transform(8), View(), training=False)
    grays = [float(data[n].clip.mean()) * 255 for n in range(3)]
    assert grays == pytest.approx([10, 20, 30], abs=0.5)
    assert [one.split("::")[1] for one in listing.skipped] == ["/last: no image or video", "/empty: no label"]
    for item in find_footage(archive).items:
        if item.members[0][2]:
            assert read_frames(item, lambda count: [0]).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    "labels", [b'{"label": ["a"', b"[" * 100_000, b'{"label": {}}', b"[]", b'{"label": [3.5]}', b"\xff"]
)
def test_invalid_labels_are_skipped(tmp_path, labels):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        put(tar, "0.png", png_bytes())
        put(tar, "0.json", labels)
        put(tar, "1.png", png_bytes())
        put(tar, "1.cls", b"cat")
    listing = read_listing(tmp_path / "a.tar")
    assert [item.member for item in listing.items] == ["1.png"]
    assert "its .json" in listing.skipped[0]


def header(name: bytes, size: bytes, kind: bytes = b"0", magic: bytes = b"ustar\x0000") -> bytes:
    block = bytearray(512)
    block[:100] = name.ljust(100, b"\0")
    block[124:136] = size.ljust(12, b"\0")
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = magic
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


END = b"\0" * 1024


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"no tar at all" * 100, "it may be compressed"),
        (gzip.compress(header(b"a.png", b"0") + END, mtime=0), "it may be compressed|ends in the header"),
        (header(b"a.png", b"\x80" + b"\xff" * 11) + END, "ends inside the member 'a.png'"),
        (header(b"a.png", b"\xff" * 12) + END, "invalid size"),  # minus one
        (header(b"a.png", b"-0000001000") + END, "invalid size"),
        (header(b"a.png", b"77777777777") + END, "ends inside the member"),
        (header(b"a.png", b"99999999999") + END, "invalid literal"),
        (header(b"a.png", b"1000") + b"x" * 300, "ends inside the member"),
        (header(b"a.png", b"0") + b"x" * 700, "invalid header at byte 512"),
        (header(b"a.png", b"0") + b"x" * 100, "ends in the header at byte 512"),
        (header(b"", b"77777777777", b"x") + END, r"too long an extended header \(8589934591 bytes\)"),
        (header(b"", b"77777777777", b"L") + END, r"too long an extended header \(8589934591 bytes\)"),
        (header(b"", b"\xff" * 12, b"x") + END, "invalid size"),
        (header(b"", b"1000", b"x") + b"9" * 512 + header(b"a.png", b"0") + END, "a damaged extended header"),
        (
            header(b"", b"20", b"x") + b"16 size=-1000000".ljust(512, b"\0") + header(b"a.png", b"0") + END,
            "invalid size",
        ),
        (header(b"a.png", b"1000", b"S") + b"x" * 512 + END, "a sparse member"),
    ],
)
def test_invalid_tars(tmp_path, content, message):
    (tmp_path / "a.tar").write_bytes(content)
    begin = time.process_time()
    for read in (lambda: read_listing(tmp_path / "a.tar"), lambda: find_footage(tmp_path / "a.tar")):
        with pytest.raises(ValueError, match=f"a.tar: cannot be read as a tar .*({message})") as error:
            read()
        assert "\n" not in str(error.value)
    assert time.process_time() - begin < 2


def test_long_extended_headers_fail_fast(tmp_path):
    body = b"9" * 1_000_000
    size = -(-len(body) // 512) * 512
    (tmp_path / "a.tar").write_bytes(header(b"", b"%o" % size, b"x") + body.ljust(size, b"9") + END)
    begin = time.process_time()
    with pytest.raises(ValueError, match="damaged extended header"):
        find_footage(tmp_path / "a.tar")
    assert time.process_time() - begin < 1


def test_reading_beyond_the_end_fails(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"0123456789")
    path = str(tmp_path / "a.tar")
    assert read_member(path, 2, 3) == b"234"
    target = io.BytesIO()
    copy_member(path, 2, 8, target)
    assert target.getvalue() == b"23456789"
    for size in (9, 1 << 29):
        with pytest.raises(ValueError, match="cut short"):
            read_member(path, 2, size)
        with pytest.raises(ValueError, match="cut short"):
            copy_member(path, 2, size, io.BytesIO())
    with pytest.raises(ValueError, match="too large for an image"):
        read_member(path, 2, 1 << 40)


def test_damage_raises_only_value_errors(archive):
    intact, rng = archive.read_bytes(), random.Random(0)
    for _ in range(300):
        content = bytearray(intact)
        for _ in range(rng.randint(1, 3)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        archive.write_bytes(content[: rng.randint(len(content) // 2, len(content))])
        with contextlib.suppress(ValueError):
            assert all(one.offset + one.size <= os.path.getsize(archive) for one in list_members(archive))
