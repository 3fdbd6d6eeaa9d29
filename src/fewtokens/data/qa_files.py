"""Rows of published lists of questions (csv, json, jsonl, parquet), and the videos that they name."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SUFFIXES = (".mp4", ".MP4", ".mkv", ".webm", ".avi", ".mov")


@dataclass(frozen=True)
class Row:
    """What a line or an entry says, and how to call it in an error."""

    where: str
    said: dict[str, Any]

    def get(self, key: str) -> Any:
        if self.said.get(key) is None:
            raise ValueError(f"{self.where}: has no {key!r}")
        return self.said[key]

    def text(self, key: str) -> str:
        return str(self.get(key)).strip()

    def number(self, key: str) -> float | None:
        if self.said.get(key) in (None, ""):
            return None
        try:
            return float(self.said[key])
        except (TypeError, ValueError):
            raise ValueError(f"{self.where}: {key!r} must be a number, got {self.said[key]!r}") from None

    def texts(self, key: str) -> tuple[str, ...]:
        said = self.get(key)
        if not isinstance(said, list) or not said or not all(isinstance(part, str) for part in said):
            raise ValueError(f"{self.where}: {key!r} must be a list of texts, got {said!r}")
        return tuple(part.strip() for part in said)

    def chosen(self, key: str, choices: Sequence[str]) -> int:
        number = self.number(key)
        if number is None or int(number) != number or not 0 <= number < len(choices):
            raise ValueError(f"{self.where}: {key!r} must be 0 to {len(choices) - 1}, got {self.said.get(key)!r}")
        return int(number)


def list_files(folder: Path, name: str, split: str, patterns: Sequence[str]) -> list[Path]:
    """The files of the first pattern that any file has."""
    for pattern in patterns:
        if found := sorted(folder.glob(pattern)):
            return found
    raise ValueError(f"{folder}: no annotations of {name} for {split!r}; expected {' or '.join(patterns)}")


def read_rows(folder: Path, name: str, split: str, patterns: Sequence[str]) -> Iterator[Row]:
    """The rows of all files of the first pattern that any file has."""
    for path in list_files(folder, name, split, patterns):
        yield from read(path)


def read(path: Path) -> Iterator[Row]:
    """Rows of a .csv, .json (a list of objects), .jsonl or .parquet."""
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            lines = csv.DictReader(file)
            for said in lines:
                where = f"{path}, line {lines.line_num}"
                if None in said or None in said.values():
                    raise ValueError(f"{where}: has not as many cells as the header")
                yield Row(where, said)
    elif path.suffix == ".parquet":
        try:
            from pyarrow import parquet
        except ImportError:
            raise ValueError(f"{path}: needs pyarrow; pip install pyarrow, or put the rows there as .json") from None
        for number, said in enumerate(parquet.read_table(path).to_pylist(), start=1):
            yield Row(f"{path}, row {number}", said)
    else:
        yield from read_json(path)


def read_json(path: Path, whole: bool = False) -> Iterator[Row]:
    """Objects of a list, or of one line each in a .jsonl; with `whole` the one object that the file is."""
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _object(_parsed(line, path, number), f"{path}, line {number}")
        return
    said = _parsed(path.read_text(encoding="utf-8-sig", errors="replace"), path, 1)
    if whole:
        yield _object(said, str(path))
        return
    if not isinstance(said, list):
        raise ValueError(f"{path}: must be a list of objects")
    for number, entry in enumerate(said, start=1):
        yield _object(entry, f"{path}, entry {number}")


def _parsed(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {line + error.lineno - 1}: not JSON ({error.msg})") from None


def _object(said: Any, where: str) -> Row:
    if not isinstance(said, dict):
        raise ValueError(f"{where}: must be an object")
    return Row(where, said)


def find(
    folder: Path, places: Sequence[str], names: str | Sequence[str], where: str, missing: list[str]
) -> Path | None:
    """The first of the files that is there, with the suffix named or that of another video; None notes it as missing.

    A name never leads out of its place, not by a link either; that a place is a link elsewhere is the user's choice.
    """
    names = (names,) if isinstance(names, str) else names
    for name in names:
        written = Path(name.replace("\\", "/"))
        if written.is_absolute() or ".." in written.parts or not written.parts or "\0" in name:
            raise ValueError(f"{where}: the file {name!r} leads out of {folder}; mend or remove this entry")
    for place in places:
        base = folder / place
        for name in names:
            path = base / name
            others = () if path.suffix.lower() in (".srt", ".json") else _SUFFIXES
            # Names of YouTube may hold a dot, so a suffix is also added to the whole name.
            stems = (path, path.with_suffix("")) if path.suffix in _SUFFIXES else (path,)
            for file in (path, *(Path(f"{stem}{suffix}") for stem in stems for suffix in others)):
                if file.exists():
                    if not file.resolve().is_relative_to(base.resolve()):
                        raise ValueError(f"{where}: the file {name!r} leads out of {folder}; mend or remove this entry")
                    return file
    missing.append(names[0])
    return None


def missing_line(missing: Sequence[str]) -> str:
    """How many videos are not there, and the first of them."""
    names = list(dict.fromkeys(missing))
    what = "1 video is" if len(names) == 1 else f"{len(names)} videos are"
    return f"{what} not there: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
