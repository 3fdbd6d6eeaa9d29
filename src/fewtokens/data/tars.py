"""Tars, read in place: an index once, then any member by its offset. No name in a tar is ever written to.

The index is read here and not by tarfile, which follows what a header declares: in some of the Pythons that this
package supports a negative size is an endless loop (CVE-2025-8194) and a long extended header takes minutes
(CVE-2024-6232); in all of them a damaged header in the middle ends the archive without a word.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple

from fewtokens.core.files import parse_json
from fewtokens.core.plain import conform
from fewtokens.data.lists import Row, parse_labels

_PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "mp4", "webm", "mkv", "avi", "mov")
_BLOCK = 512
# More than any long name or label takes.
_MOST_TEXT = 1 << 20
# Members that are read whole; videos are copied in pieces and may be longer.
_MOST_BYTES = 1 << 30
_FILES, _LONG_NAME, _LONG_LINK, _FOR_NEXT, _FOR_ALL = b"\0" + b"07", b"L", b"K", b"xX", b"g"


class Member(NamedTuple):
    """A file in a tar: its name, its first byte and its bytes."""

    name: str
    offset: int
    size: int


def list_members(path: str | Path) -> Iterator[Member]:
    """The regular files of an uncompressed tar (ustar, GNU or pax), in order; links, devices and folders are not.

    Raises:
        ValueError: not a tar, compressed, cut, damaged anywhere, or with sparse files.
    """
    path = Path(path)
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        try:
            yield from _members(file, end)
        except (OSError, EOFError, ValueError) as error:
            raise ValueError(f"{path}: not a tar that can be read ({error}); is it whole?") from None


def _members(file: BinaryIO, end: int) -> Iterator[Member]:
    place, changes = 0, dict[str, str]()
    if not end:
        raise ValueError("it is empty")
    while place < end:
        file.seek(place)
        header = file.read(_BLOCK)
        if header.count(0) == len(header):
            return
        _check_header(header, place)
        kind, size = header[156:157], _number(header[124:136])
        place += _BLOCK
        if kind in _FOR_NEXT:
            changes |= _extended(_text(file, size, end, place))
        elif kind == _LONG_NAME:
            changes["path"] = _text(file, size, end, place).split(b"\0")[0].decode("utf-8", "surrogateescape")
        elif kind not in (_LONG_LINK, _FOR_ALL):
            if any(name.startswith("GNU.sparse") for name in changes) or kind == b"S":
                raise ValueError("a sparse file in it cannot be read in place; write the tar without --sparse")
            size = _whole(changes["size"]) if "size" in changes else size
            name = changes.get("path") or _name(header)
            if kind in _FILES and not name.endswith("/"):
                if place + size > end:
                    raise ValueError(f"it ends before its member {name!r:.80}")
                yield Member(name, place, size)
            elif kind not in _FILES:
                size = size if kind not in b"123456" else 0  # links, devices, folders, pipes: nothing follows
            changes = {}
        place += -(-size // _BLOCK) * _BLOCK
    if place > end:
        raise ValueError("it ends in the middle of a member")


def _check_header(header: bytes, place: int) -> None:
    if len(header) < _BLOCK:
        raise ValueError(f"it ends in the header at byte {place}")
    bare = header[:148] + b" " * 8 + header[156:]
    try:
        said = _number(header[148:156])
    except ValueError:
        said = -1
    # Some old writers added signed bytes.
    if said != sum(bare) and said != sum(byte - 256 * (byte > 127) for byte in bare):
        raise ValueError(f"no header of a member at byte {place}" + ("" if place else "; it may be compressed"))


def _number(field: bytes) -> int:
    """Octal text, or a binary number, as GNU writes long ones."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.split(b"\0")[0].strip() or b"0"
    if not text.isdigit():
        raise ValueError(f"a size of {text[:12]!r}")
    return int(text, 8)


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ValueError(f"a size of {text[:20]!r}")
    return int(text)


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    if header[257:263] == b"ustar\0" and (prefix := header[345:500].split(b"\0")[0]):
        name = prefix + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _text(file: BinaryIO, size: int, end: int, place: int) -> bytes:
    if size > min(_MOST_TEXT, end - place):
        raise ValueError(f"an extended header of {size} bytes at byte {place}")
    return file.read(size)


def _extended(text: bytes) -> dict[str, str]:
    """The records of a pax header: "LENGTH NAME=VALUE" and a line end, each of that length."""
    found, place = {}, 0
    while place < len(text):
        space = text.find(b" ", place, place + 12)
        digits = text[place : max(space, place)]
        length = int(digits) if digits.isdigit() else 0
        name, equals, value = text[space + 1 : place + length].partition(b"=")
        if not equals or place + length > len(text):
            raise ValueError("a damaged extended header")
        found[name.decode("utf-8", "replace")] = value.removesuffix(b"\n").decode("utf-8", "surrogateescape")
        place += length
    return found


def find_tars(source: Path) -> list[Path]:
    """The tars of a folder, or the one that `source` is."""
    return sorted(path for path in source.glob("*.tar") if path.is_file()) if source.is_dir() else [source]


def read_tars(source: Path, left_out: list[str]) -> Iterator[Row]:
    """Every sample of a tar, or of the tars of a folder; without labels where it has no class.

    A sample is the members that share a name up to the first dot: an image or video, and .cls (a number or name)
    or .json (with "label" or "cls").

    Raises:
        ValueError: a tar that cannot be read or is cut.
    """
    for path in find_tars(source):
        samples: dict[str, dict[str, Member]] = defaultdict(dict)
        for member in list_members(path):
            folder, _, name = member.name.rpartition("/")
            key, _, suffix = name.partition(".")
            samples[f"{folder}/{key}"][suffix.lower()] = member
        for key, parts in samples.items():
            picture = next((parts[suffix] for suffix in _PICTURES if suffix in parts), None)
            where = f"{path}::{key}"
            if picture is None:
                left_out.append(f"{where}: no image or video")
                continue
            try:
                labels = _labels(path, parts)
            except ValueError as error:
                left_out.append(f"{where}: {error}")
                continue
            yield Row(where, str(path), labels, None, None, *picture)


def _labels(path: Path, parts: dict[str, Member]) -> tuple[str, ...]:
    for suffix in ("cls", "json"):
        if suffix not in parts:
            continue
        member = parts[suffix]
        if member.size > _MOST_TEXT:
            raise ValueError(f"its .{suffix} has {member.size} bytes")
        try:
            text = read_member(str(path), member.offset, member.size).decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            raise ValueError(f"its .{suffix} is not UTF-8 text") from None
        if suffix == "cls":
            return (text,) if text else ()
        what = f"its .{suffix}"
        said = conform(parse_json(text, what), dict, what)
        return parse_labels(said.get("label", said.get("cls")), what)
    return ()


def read_member(path: str, offset: int, size: int) -> bytes:
    """The bytes of a member.

    Raises:
        ValueError: the tar ends before them, or it is too large to be an image.
    """
    if size > _MOST_BYTES:
        raise ValueError(f"{path}: the member at byte {offset} has {size >> 20} MiB, too large for an image")
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) != size:
        raise ValueError(f"{path}: ends before the member at byte {offset}; was it cut short?")
    return data


def copy_member(path: str, offset: int, size: int, target: IO[bytes]) -> None:
    """Copies the bytes of a member in pieces; raises a ValueError where the tar ends before them."""
    with open(path, "rb") as file:
        file.seek(offset)
        while size:
            piece = file.read(min(size, 1 << 20))
            if not piece:
                raise ValueError(f"{path}: ends before the member at byte {offset}; was it cut short?")
            target.write(piece)
            size -= len(piece)
    target.flush()
