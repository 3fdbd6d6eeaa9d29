"""Rows of published lists of questions (csv, json, jsonl, parquet), and the videos that they name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewtokens.core.files import parse_json, read_lines, read_table, read_text
from fewtokens.core.plain import conform

_SUFFIXES = (".mp4", ".MP4", ".mkv", ".webm", ".avi", ".mov")
# No published set comes near; a small file can declare more.
_MOST_ROWS = 10_000_000


@dataclass(frozen=True)
class Row:
    """What a line or an entry says, and how to call it in an error."""

    where: str
    said: dict[str, Any]

    def get(self, key: str, kind: Any = Any) -> Any:
        """The value of that key, which must be there and of that kind (see `fewtokens.core.plain.conform`)."""
        if self.said.get(key) is None:
            raise ValueError(f"{self.where}: has no {key!r}")
        return conform(self.said[key], kind, f"{self.where}: {key!r}")

    def text(self, key: str) -> str:
        """Text, or a number as text."""
        return str(self.get(key, str | int | float)).strip()

    def text_or_none(self, key: str) -> str:
        """As `text`; "" where there is none."""
        return "" if self.said.get(key) is None else self.text(key)

    def number(self, key: str) -> float | None:
        """A number, or text that is one; None where there is none."""
        value = self.said.get(key)
        if value in (None, ""):
            return None
        try:
            return float(conform(float(value) if isinstance(value, str) else value, float, ""))
        except ValueError:
            raise ValueError(f"{self.where}: {key!r} must be a number, got {value!r:.80}") from None

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, at least one."""
        said = self.get(key)
        if not isinstance(said, list) or not said or not all(isinstance(part, str) for part in said):
            raise ValueError(f"{self.where}: {key!r} must be a list of texts, got {said!r:.80}")
        return tuple(part.strip() for part in said)

    def chosen(self, key: str, choices: Sequence[str]) -> int:
        """The number of one of the choices."""
        number = self.number(key)
        if number is None or int(number) != number or not 0 <= number < len(choices):
            raise ValueError(f"{self.where}: {key!r} must be 0 to {len(choices) - 1}, got {self.said.get(key)!r:.80}")
        return int(number)


def list_files(folder: Path, name: str, split: str, patterns: Sequence[str]) -> list[Path]:
    """The files of the first pattern that any file has."""
    for pattern in patterns:
        if found := sorted(file for file in folder.glob(pattern) if file.is_file()):
            return found
    raise ValueError(f"{folder}: no annotations of {name} for {split!r}; expected {' or '.join(patterns)}")


def read_rows(folder: Path, name: str, split: str, patterns: Sequence[str]) -> Iterator[Row]:
    """The rows of all files of the first pattern that any file has."""
    for path in list_files(folder, name, split, patterns):
        yield from read(path)


def read(path: Path) -> Iterator[Row]:
    """Rows of a .csv, .json (a list of objects), .jsonl or .parquet.

    Raises:
        ValueError: a file that cannot be read, by line or entry.
    """
    if path.suffix == ".csv":
        for line, cells, surplus in read_table(path):
            if surplus:
                raise ValueError(f"{path}, line {line}: has not as many cells as the header")
            yield Row(f"{path}, line {line}", cells)
    elif path.suffix == ".parquet":
        yield from _read_parquet(path)
    else:
        yield from read_json(path)


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ValueError(f"{path}: needs pyarrow; pip install pyarrow, or put the rows there as .json") from None
    try:
        with parquet.ParquetFile(path) as file:
            if file.metadata.num_rows > _MOST_ROWS:
                raise ValueError(f"declares {file.metadata.num_rows:,} rows")
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for said in batch.to_pylist():
                    number += 1
                    yield _object(said, f"{path}, row {number}")
    except (ArrowException, ValueError, KeyError, OSError) as error:  # it calls damage what it likes
        raise ValueError(
            f"{path}: not a parquet file that can be read ({' '.join(str(error).split())[:120]})"
        ) from None


def read_json(path: Path, whole: bool = False) -> Iterator[Row]:
    """Objects of a list, or of one line each in a .jsonl; with `whole` the one object that the file is.

    Raises:
        ValueError: no such file, or not one of these; by line or entry.
    """
    if path.suffix == ".jsonl":
        for number, line in read_lines(path):
            where = f"{path}, line {number}"
            yield _object(parse_json(line, where), where)
        return
    said = parse_json(read_text(path), str(path))
    if whole:
        yield _object(said, str(path))
        return
    if not isinstance(said, list):
        raise ValueError(f"{path}: must be a list of objects")
    for number, entry in enumerate(said, start=1):
        yield _object(entry, f"{path}, entry {number}")


def _object(said: Any, where: str) -> Row:
    if not isinstance(said, dict):
        raise ValueError(f"{where}: must be an object")
    return Row(where, conform(said, dict[str, Any], where))


def find(
    folder: Path, places: Sequence[str], names: str | Sequence[str], where: str, missing: list[str]
) -> Path | None:
    """The first of the files that is there, with the suffix named or that of another video; None notes it as missing.

    A name never leads out of its place, not by a link either; that a place is a link elsewhere is the user's choice.
    """
    names = [name.replace("\\", "/") for name in ((names,) if isinstance(names, str) else names)]
    for name in names:
        written = Path(name)
        if written.is_absolute() or ".." in written.parts or not written.parts or "\0" in name:
            raise ValueError(f"{where}: the file {name[:200]!r} leads out of {folder}; mend or remove this entry")
    for place in places:
        base = folder / place
        for name in names:
            path = base / name
            others = () if path.suffix.lower() in (".srt", ".json") else _SUFFIXES
            # Names of YouTube may hold a dot, so a suffix is also added to the whole name.
            stems = (path, path.with_suffix("")) if path.suffix in _SUFFIXES else (path,)
            for file in (path, *(Path(f"{stem}{suffix}") for stem in stems for suffix in others)):
                # Neither devices nor pipes; both are False for a name that the system refuses.
                if os.path.isfile(file) or os.path.isdir(file):
                    if not file.resolve().is_relative_to(base.resolve()):
                        raise ValueError(
                            f"{where}: the file {name[:200]!r} leads out of {folder}; mend or remove this entry"
                        )
                    return file
    missing.append(names[0])
    return None


def missing_line(missing: Sequence[str]) -> str:
    """How many videos are not there, and the first of them."""
    names = [" ".join(name.split())[:80] for name in dict.fromkeys(missing)]
    what = "1 video is" if len(names) == 1 else f"{len(names)} videos are"
    return f"{what} not there: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
