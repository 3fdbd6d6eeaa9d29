"""WebDataset tars, read in place: an index once, then any member by its offset. No name in a tar is ever written to."""

from __future__ import annotations

import json
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

_PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "mp4", "webm", "mkv", "avi", "mov")
Row = tuple[str, tuple[str, ...], None, None, str, int, int]


def read_tars(source: Path, left_out: list[str]) -> Iterator[Row]:
    """(tar, labels, None, None, member, offset, size) of every sample.

    A sample is the members that share a name up to the first dot: an image or video, and .cls (a number or name)
    or .json (with "label" or "cls").

    Raises:
        ValueError: a tar that cannot be read or is cut.
    """
    for path in sorted(source.glob("*.tar")) if source.is_dir() else [source]:
        samples: dict[str, dict[str, tarfile.TarInfo]] = defaultdict(dict)
        try:
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.isfile():
                        folder, _, name = member.name.rpartition("/")
                        key, _, suffix = name.partition(".")
                        samples[f"{folder}/{key}"][suffix.lower()] = member
                for key, parts in samples.items():
                    picture = next((parts[suffix] for suffix in _PICTURES if suffix in parts), None)
                    labels = _labels(tar, parts)
                    if picture is None or labels is None:
                        left_out.append(f"{path}::{key}: no {'image or video' if picture is None else 'class'}")
                        continue
                    yield str(path), labels, None, None, picture.name, picture.offset_data, picture.size
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ValueError(f"{path}: not a tar that can be read ({error}); is it whole?") from None


def _labels(tar: tarfile.TarFile, parts: dict[str, tarfile.TarInfo]) -> tuple[str, ...] | None:
    for suffix in ("cls", "json"):
        if suffix not in parts:
            continue
        file = tar.extractfile(parts[suffix])
        text = file.read().decode("utf-8", "replace").strip() if file else ""
        if suffix == "cls":
            return (text,) if text else None
        try:
            said = json.loads(text)
            label = said.get("label", said.get("cls"))
        except (json.JSONDecodeError, AttributeError):
            return None
        if label is None:
            return None
        return tuple(str(part) for part in (label if isinstance(label, list) else [label]))
    return None


def read_member(path: str, offset: int, size: int) -> bytes:
    """The bytes of a member; a ValueError where the tar ends before them."""
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) != size:
        raise ValueError(f"{path}: ends before the member at byte {offset}; was it cut short?")
    return data
