"""Reads tars in place: the index once, then any member by its offset. Names in a tar are never used to write files.

The index is not read with tarfile, which trusts the headers: in some supported versions of Python a negative size is
an endless loop (CVE-2025-8194) and a long extended header takes minutes (CVE-2024-6232); in all of them a damaged
header in the middle silently ends the archive.
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

_MEDIA = ("jpg", "jpeg", "png", "webp", "bmp", "mp4", "webm", "mkv", "avi", "mov")
_BLOCK = 512
# Limit for names and labels.
_MAX_TEXT = 1 << 20
# Limit for members that are read at once; videos are copied in chunks and may be longer.
_MAX_BYTES = 1 << 30
_FILES, _LONG_NAME, _LONG_LINK, _NEXT_MEMBER, _ALL_MEMBERS = b"\0" + b"07", b"L", b"K", b"xX", b"g"


class Member(NamedTuple):
    """A file in a tar: its name, its offset and its size in bytes."""

    name: str
    offset: int
    size: int


def list_members(path: str | Path) -> Iterator[Member]:
    """Yields the regular files of an uncompressed tar (ustar, GNU or pax), in order.

    Raises:
        ValueError: the file is not a tar, is compressed, truncated or damaged, or contains sparse files.
    """
    path = Path(path)
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        try:
            yield from _members(file, end)
        except (OSError, EOFError, ValueError) as error:
            raise ValueError(f"{path}: cannot be read as a tar ({error}); is it complete?") from None


def _members(file: BinaryIO, end: int) -> Iterator[Member]:
    offset, overrides = 0, dict[str, str]()
    if not end:
        raise ValueError("it is empty")
    while offset < end:
        file.seek(offset)
        header = file.read(_BLOCK)
        if header.count(0) == len(header):
            return
        _check_header(header, offset)
        kind, size = header[156:157], _number(header[124:136])
        offset += _BLOCK
        if kind in _NEXT_MEMBER:
            overrides |= _parse_pax(_text(file, size, end, offset))
        elif kind == _LONG_NAME:
            overrides["path"] = _text(file, size, end, offset).split(b"\0")[0].decode("utf-8", "surrogateescape")
        elif kind not in (_LONG_LINK, _ALL_MEMBERS):
            if any(name.startswith("GNU.sparse") for name in overrides) or kind == b"S":
                raise ValueError("a sparse member cannot be read in place; create the tar without --sparse")
            size = _parse_size(overrides["size"]) if "size" in overrides else size
            name = overrides.get("path") or _name(header)
            if kind in _FILES and not name.endswith("/"):
                if offset + size > end:
                    raise ValueError(f"it ends inside the member {name!r:.80}")
                yield Member(name, offset, size)
            elif kind not in _FILES:
                size = size if kind not in b"123456" else 0  # links, devices, folders and pipes have no data
            overrides = {}
        offset += -(-size // _BLOCK) * _BLOCK
    if offset > end:
        raise ValueError("it ends in the middle of a member")


def _check_header(header: bytes, offset: int) -> None:
    if len(header) < _BLOCK:
        raise ValueError(f"it ends in the header at byte {offset}")
    blanked = header[:148] + b" " * 8 + header[156:]
    try:
        checksum = _number(header[148:156])
    except ValueError:
        checksum = -1
    # Some old writers summed signed bytes.
    if checksum != sum(blanked) and checksum != sum(byte - 256 * (byte > 127) for byte in blanked):
        raise ValueError(f"invalid header at byte {offset}" + ("" if offset else "; it may be compressed"))


def _number(field: bytes) -> int:
    """Parses octal text, or a binary number, which GNU tar uses for large values."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.split(b"\0")[0].strip() or b"0"
    if not text.isdigit():
        raise ValueError(f"invalid size {text[:12]!r}")
    return int(text, 8)


def _parse_size(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ValueError(f"invalid size {text[:20]!r}")
    return int(text)


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    if header[257:263] == b"ustar\0" and (prefix := header[345:500].split(b"\0")[0]):
        name = prefix + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _text(file: BinaryIO, size: int, end: int, offset: int) -> bytes:
    if size > min(_MAX_TEXT, end - offset):
        raise ValueError(f"too long an extended header ({size} bytes) at byte {offset}")
    return file.read(size)


def _parse_pax(text: bytes) -> dict[str, str]:
    """Parses the records of a pax header: "LENGTH NAME=VALUE" and a newline, LENGTH bytes in total."""
    records, offset = {}, 0
    while offset < len(text):
        space = text.find(b" ", offset, offset + 12)
        digits = text[offset : max(space, offset)]
        length = int(digits) if digits.isdigit() else 0
        name, equals, value = text[space + 1 : offset + length].partition(b"=")
        if not equals or offset + length > len(text):
            raise ValueError("a damaged extended header")
        records[name.decode("utf-8", "replace")] = value.removesuffix(b"\n").decode("utf-8", "surrogateescape")
        offset += length
    return records


def find_tars(source: Path) -> list[Path]:
    """The tars of a folder, or `source` itself if it is a file."""
    return sorted(path for path in source.glob("*.tar") if path.is_file()) if source.is_dir() else [source]


def read_tars(source: Path, skipped: list[str]) -> Iterator[Row]:
    """Yields the samples of a tar or of the tars of a folder; `labels` is empty if a sample has no class.

    The members of a sample share their name up to the first dot: an image or video, and .cls (a number or name) or
    .json (with "label" or "cls").

    Raises:
        ValueError: a tar cannot be read or is truncated.
    """
    for path in find_tars(source):
        samples: dict[str, dict[str, Member]] = defaultdict(dict)
        for member in list_members(path):
            folder, _, name = member.name.rpartition("/")
            key, _, suffix = name.partition(".")
            samples[f"{folder}/{key}"][suffix.lower()] = member
        for key, parts in samples.items():
            media = next((parts[suffix] for suffix in _MEDIA if suffix in parts), None)
            where = f"{path}::{key}"
            if media is None:
                skipped.append(f"{where}: no image or video")
                continue
            try:
                labels = _labels(path, parts)
            except ValueError as error:
                skipped.append(f"{where}: {error}")
                continue
            yield Row(where, str(path), labels, None, None, *media)


def _labels(path: Path, parts: dict[str, Member]) -> tuple[str, ...]:
    for suffix in ("cls", "json"):
        if suffix not in parts:
            continue
        member = parts[suffix]
        if member.size > _MAX_TEXT:
            raise ValueError(f"its .{suffix} is too large ({member.size} bytes)")
        try:
            text = read_member(str(path), member.offset, member.size).decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            raise ValueError(f"its .{suffix} is not UTF-8 text") from None
        if suffix == "cls":
            return (text,) if text else ()
        label = f"its .{suffix}"
        values = conform(parse_json(text, label), dict, label)
        return parse_labels(values.get("label", values.get("cls")), label)
    return ()


def read_member(path: str, offset: int, size: int) -> bytes:
    """Reads the bytes of a member.

    Raises:
        ValueError: the tar is truncated, or the member is too large to be an image.
    """
    if size > _MAX_BYTES:
        raise ValueError(f"{path}: the member at byte {offset} has {size >> 20} MiB, too large for an image")
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) != size:
        raise ValueError(f"{path}: ends inside the member at byte {offset}; was it cut short?")
    return data


def copy_member(path: str, offset: int, size: int, target: IO[bytes]) -> None:
    """Copies the bytes of a member in chunks; raises a ValueError if the tar is truncated."""
    with open(path, "rb") as file:
        file.seek(offset)
        while size:
            chunk = file.read(min(size, 1 << 20))
            if not chunk:
                raise ValueError(f"{path}: ends inside the member at byte {offset}; was it cut short?")
            target.write(chunk)
            size -= len(chunk)
    target.flush()
