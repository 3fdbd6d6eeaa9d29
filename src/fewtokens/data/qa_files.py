"""Reads the rows of published question files (csv, json, jsonl, parquet) and finds the videos that they name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewtokens.core.files import parse_json, read_lines, read_table, read_text
from fewtokens.core.plain import conform

_SUFFIXES = (".mp4", ".MP4", ".mkv", ".webm", ".avi", ".mov")
# Far more than any published set has; a small file can declare more.
_MAX_ROWS = 10_000_000


@dataclass(frozen=True)
class Row:
    """The values of a line or an entry.

    Attributes:
        where: the file and line, for errors.
        values: the values by key.
    """

    where: str
    values: dict[str, Any]

    def get(self, key: str, kind: Any = Any) -> Any:
        """A required value of the type `kind` (see `fewtokens.core.plain.conform`)."""
        if self.values.get(key) is None:
            raise ValueError(f"{self.where}: {key!r} is missing")
        return conform(self.values[key], kind, f"{self.where}: {key!r}")

    def text(self, key: str) -> str:
        """A required text, or a number as text."""
        return str(self.get(key, str | int | float)).strip()

    def optional_text(self, key: str) -> str:
        """As `text`, but "" if the key is missing."""
        return "" if self.values.get(key) is None else self.text(key)

    def number(self, key: str) -> float | None:
        """A number or a text that contains one; None if the key is missing."""
        value = self.values.get(key)
        if value in (None, ""):
            return None
        try:
            return float(conform(float(value) if isinstance(value, str) else value, float, ""))
        except ValueError:
            raise ValueError(f"{self.where}: {key!r} must be a number, got {value!r:.80}") from None

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of at least one text."""
        values = self.get(key)
        if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
            raise ValueError(f"{self.where}: {key!r} must be a list of texts, got {values!r:.80}")
        return tuple(value.strip() for value in values)

    def choice_index(self, key: str, choices: Sequence[str]) -> int:
        """A valid index into `choices`."""
        number = self.number(key)
        if number is None or int(number) != number or not 0 <= number < len(choices):
            raise ValueError(f"{self.where}: {key!r} must be 0 to {len(choices) - 1}, got {self.values.get(key)!r:.80}")
        return int(number)


def list_files(folder: Path, name: str, split: str, patterns: Sequence[str]) -> list[Path]:
    """The files that match the first pattern with any match."""
    for pattern in patterns:
        if files := sorted(file for file in folder.glob(pattern) if file.is_file()):
            return files
    raise ValueError(f"{folder}: no annotations of {name} for {split!r}; expected {' or '.join(patterns)}")


def read_rows(folder: Path, name: str, split: str, patterns: Sequence[str]) -> Iterator[Row]:
    """Yields the rows of all files that `list_files` returns."""
    for path in list_files(folder, name, split, patterns):
        yield from read(path)


def read(path: Path) -> Iterator[Row]:
    """Yields the rows of a .csv, .json (a list of objects), .jsonl or .parquet.

    Raises:
        ValueError: the file cannot be read; the message names the line or entry.
    """
    if path.suffix == ".csv":
        for line, cells, surplus in read_table(path):
            if surplus:
                raise ValueError(f"{path}, line {line}: the number of cells differs from the header")
            yield Row(f"{path}, line {line}", cells)
    elif path.suffix == ".parquet":
        yield from _read_parquet(path)
    else:
        yield from read_json(path)


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ValueError(f"{path}: requires pyarrow; pip install pyarrow, or convert the rows to .json") from None
    try:
        with parquet.ParquetFile(path) as file:
            if file.metadata.num_rows > _MAX_ROWS:
                raise ValueError(f"declares {file.metadata.num_rows:,} rows")
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield _to_row(values, f"{path}, row {number}")
    except (ArrowException, ValueError, KeyError, OSError) as error:  # pyarrow raises any of these on damaged files
        raise ValueError(f"{path}: cannot be read as parquet ({' '.join(str(error).split())[:120]})") from None


def read_json(path: Path, whole: bool = False) -> Iterator[Row]:
    """Yields the objects of a .jsonl (one per line) or of the list in a .json.

    Args:
        path: the file.
        whole: the .json is a single object; yield it.

    Raises:
        ValueError: the file does not exist or has another structure; the message names the line or entry.
    """
    if path.suffix == ".jsonl":
        for number, line in read_lines(path):
            where = f"{path}, line {number}"
            yield _to_row(parse_json(line, where), where)
        return
    contents = parse_json(read_text(path), str(path))
    if whole:
        yield _to_row(contents, str(path))
        return
    if not isinstance(contents, list):
        raise ValueError(f"{path}: must be a list of objects")
    for number, entry in enumerate(contents, start=1):
        yield _to_row(entry, f"{path}, entry {number}")


def _to_row(values: Any, where: str) -> Row:
    if not isinstance(values, dict):
        raise ValueError(f"{where}: must be an object")
    return Row(where, conform(values, dict[str, Any], where))


def find(
    folder: Path, subfolders: Sequence[str], names: str | Sequence[str], where: str, missing: list[str]
) -> Path | None:
    """Finds the first existing file with one of the names, also with the suffix of another video format.

    A file must be inside its subfolder, also after following links; the subfolder itself may be a link.

    Returns:
        the path; None if there is no such file, in which case the name is added to `missing`.

    Raises:
        ValueError: a name is outside the folder.
    """
    names = [name.replace("\\", "/") for name in ((names,) if isinstance(names, str) else names)]
    for name in names:
        relative = Path(name)
        if relative.is_absolute() or ".." in relative.parts or not relative.parts or "\0" in name:
            raise ValueError(f"{where}: the file {name[:200]!r} is outside {folder}; correct or remove this entry")
    for subfolder in subfolders:
        base = folder / subfolder
        for name in names:
            path = base / name
            suffixes = () if path.suffix.lower() in (".srt", ".json") else _SUFFIXES
            # YouTube ids may contain a dot, so a suffix is also appended to the full name.
            stems = (path, path.with_suffix("")) if path.suffix in _SUFFIXES else (path,)
            for file in (path, *(Path(f"{stem}{suffix}") for stem in stems for suffix in suffixes)):
                # Excludes devices and pipes; both functions are False for names that the system refuses.
                if os.path.isfile(file) or os.path.isdir(file):
                    if not file.resolve().is_relative_to(base.resolve()):
                        raise ValueError(
                            f"{where}: the file {name[:200]!r} is outside {folder}; correct or remove this entry"
                        )
                    return file
    missing.append(names[0])
    return None


def describe_missing(missing: Sequence[str]) -> str:
    """One line with the number of missing videos and the names of the first three."""
    names = [" ".join(name.split())[:80] for name in dict.fromkeys(missing)]
    count = "1 video is" if len(names) == 1 else f"{len(names)} videos are"
    return f"{count} missing: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
