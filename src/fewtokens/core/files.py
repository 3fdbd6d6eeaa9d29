"""Reads and writes files: safetensors with a JSON header, text, CSV and JSON.

Writes are atomic: a file is written in a temporary folder next to its path and renamed when it is complete. Reading
never unpickles anything, and an invalid file raises a ValueError with a message of one line.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewtokens.core.plain import conform, one_line
from fewtokens.version import __version__

try:
    import fcntl
except ImportError:  # Windows: killed writers cannot be distinguished from running ones, so nothing is swept
    fcntl = None  # type: ignore[assignment]

FORMAT_VERSION = 2

# Error codes of a full or read-only disk.
DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class CorruptFileError(ValueError):
    """Raised if a file is truncated or corrupt. A valid file of another type raises an ordinary ValueError."""


# The temporary folder of one writer, locked while the writer is alive. Its name matches no pattern of results.
_PREFIX, _SUFFIX = ".fewtokens-", ".partial"
_swept: set[Path] = set()


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path that replaces `path` on success and is removed on failure.

    The temporary file is in a private folder next to `path`, so that partial files of other libraries are removed with
    it. It has no suffix, so the writer must be given the format. The content is flushed to disk before the rename.
    Leftovers of killed processes in the parent folder are removed first, see `sweep`.
    """
    path = Path(path)
    with _temporary_folder(path.parent) as folder:
        temporary = folder / "file"
        yield temporary
        _flush_file(temporary)
        os.replace(temporary, path)
        _flush_folder(path.parent)


@contextmanager
def atomic_folder(folder: str | Path, last: str) -> Iterator[Path]:
    """Yields a temporary folder; its files move into `folder` on success and are removed on failure.

    If the process is killed between two moves, files of two saves must not be mixed. So the file `last`, which every
    reader requires, is removed before the first move and moved after all others. Until then the folder is rejected
    instead of misread. Moving takes no disk space and almost no time.

    Args:
        folder: created if needed. Its other files stay; existing files and subfolders of the same names are replaced.
        last: name of the file that marks the folder as complete; it must be among those written.
    """
    folder = Path(folder)
    with _temporary_folder(folder) as temporary:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush_file(file)
        names = sorted(path.name for path in temporary.iterdir() if path.name != last)
        (folder / last).unlink(missing_ok=True)
        for name in names:
            if (folder / name).is_dir():
                os.replace(folder / name, temporary / f"{name}.before")
            os.replace(temporary / name, folder / name)
        _flush_folder(folder)
        os.replace(temporary / last, folder / last)
        _flush_folder(folder)


@contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    """Yields a locked folder in `parent`, removed at exit; leftovers of killed processes are removed first."""
    parent.mkdir(parents=True, exist_ok=True)
    if parent not in _swept:
        sweep(parent)
    folder, lock = _locked_folder(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _flush_file(file: Path) -> None:
    """Flushes a new file to disk and sets its default permissions."""
    with open(file, "rb+") as handle:
        os.fsync(handle.fileno())
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(file, 0o666 & ~umask)  # some writers create files that only their owner can read


def sweep(folder: str | Path) -> None:
    """Removes temporary folders of killed processes from `folder`; those of live processes stay."""
    folder = Path(folder)
    _swept.add(folder)
    if fcntl is None or not folder.is_dir():
        return
    for leftover in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            lock = os.open(leftover, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover, ignore_errors=True)
            finally:
                os.close(lock)


def _locked_folder(parent: Path) -> tuple[Path, int | None]:
    """Creates a locked folder in `parent`; returns it and the descriptor of the lock, or None without locks."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=_PREFIX, suffix=_SUFFIX))
        if fcntl is None:
            return folder, None
        lock = None
        try:
            lock = os.open(folder, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # another process swept it before it was locked, or the file system does not support locks
            if lock is not None:
                os.close(lock)
            if folder.is_dir():
                return folder, None
            continue
        if folder.is_dir():
            return folder, lock
        os.close(lock)


def _flush_folder(folder: Path) -> None:
    """Flushes renames in `folder` to disk, if the system supports it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: str | Path, text: str) -> Path:
    """Writes UTF-8 text atomically; bytes of file names that are not UTF-8 are preserved (surrogateescape)."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="\n")
    return Path(path)


def write_json(path: str | Path, value: Any) -> Path:
    """Writes plain values as indented JSON, atomically."""
    return write_text(path, json.dumps(value, indent=2) + "\n")


def read_text(path: str | Path) -> str:
    """Reads UTF-8 text, with or without a byte order mark.

    Raises:
        ValueError: the file does not exist or is not UTF-8.
        OSError: the file cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    content = path.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content[:4096]:
        kind = "UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") or content[:4096].count(b"\0") > 1 else "binary"
        raise ValueError(f"{path}: {kind}, not UTF-8 text; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}: line {line} is not UTF-8 text; save the file as UTF-8") from None


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yields (line number, line) for each non-blank line of a UTF-8 file; raises the errors of `read_text`.

    Line numbers start at 1, and lines have no line break. Only LF, CRLF and CR end a line, so that other Unicode
    separators may occur in names.
    """
    for number, line in enumerate(io.StringIO(read_text(path), newline=None), start=1):
        if line.strip():
            yield number, line.rstrip("\n")


class Record(NamedTuple):
    """A row of a table.

    Attributes:
        line: line number at which the row ends, from 1.
        cells: text by column name, stripped; "" for missing cells.
        surplus: number of cells beyond the last column; negative if cells are missing.
    """

    line: int
    cells: dict[str, str]
    surplus: int


def read_table(path: str | Path) -> Iterator[Record]:
    """Yields the rows of a CSV file with a header.

    The separator is the comma, semicolon or tab that is most frequent in the header. Blank rows are skipped. Empty
    cells at the end of a row, which spreadsheets write, are not counted as surplus.

    Raises:
        ValueError: the file does not exist, is not UTF-8, has an unclosed quote or a cell beyond the limit of `csv`.
    """
    rows = _rows(path)
    header = [name.strip() for name in next(rows, (0, []))[1]]
    for line, row in rows:
        cells = [cell.strip() for cell in row]
        while len(cells) > len(header) and not cells[-1]:
            cells.pop()
        by_column = dict(zip(header, cells + [""] * (len(header) - len(cells)), strict=False))
        yield Record(line, by_column, len(cells) - len(header))


def read_header(path: str | Path) -> list[str]:
    """Returns the column names of a CSV file, or [] if the first line is not CSV; raises the errors of `read_text`."""
    first = next((line for _, line in read_lines(path)), "")
    try:
        return [name.strip() for name in next(csv.reader([first], delimiter=_separator(first)), [])]
    except csv.Error:
        return []


def _separator(header: str) -> str:
    unquoted = "".join(header.split('"')[::2])
    return max(",;\t", key=unquoted.count)


def _rows(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    text = read_text(path)
    first = next((line for line in io.StringIO(text, newline=None) if line.strip()), "")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_separator(first), strict=True)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: invalid CSV ({error})") from None


def parse_json(text: str, label: str) -> Any:
    """Parses JSON.

    Args:
        text: the JSON.
        label: prefix of the error message, such as the path of the file.

    Raises:
        ValueError: invalid JSON, nesting too deep, or a string that is not valid Unicode.
    """
    try:
        value = json.loads(text)
        if "\\ud" in text or "\\uD" in text:
            # A lone surrogate can be neither written nor printed, unless it represents a byte of a file name.
            json.dumps(value, ensure_ascii=False).encode(errors="surrogateescape")
    except RecursionError:
        raise ValueError(f"{label}: nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError(f"{label}: invalid JSON (a string contains a lone surrogate)") from None
    except ValueError as error:
        raise ValueError(f"{label}: invalid JSON ({error})") from None
    return value


def read_json(path: str | Path, kind: Any = Any) -> Any:
    """Reads a JSON file and validates its content.

    Args:
        path: the file.
        kind: the expected type, see `fewtokens.core.plain.conform`.

    Raises:
        ValueError: the file does not exist, is not JSON, or its content is not of this type.
        OSError: the file cannot be read.
    """
    return conform(parse_json(read_text(path), str(path)), kind, str(path))


def read_rows(path: str | Path, kind: Any = Any) -> list[Any]:
    """Reads a JSON Lines file, to which `append_row` can then append.

    An incomplete last line, left by a killed process, is skipped and removed from the file.

    Args:
        path: the file.
        kind: the expected type of each value, see `fewtokens.core.plain.conform`.

    Returns:
        The values; [] if the file does not exist.

    Raises:
        ValueError: any other line is not JSON, or not of this type; the message contains its number.
    """
    path = Path(path)
    if not path.exists():
        return []
    text = read_text(path)
    *complete, rest = text.split("\n")
    rows = [
        conform(parse_json(line, f"{path}: line {n}"), kind, f"{path}: line {n}") for n, line in enumerate(complete, 1)
    ]
    if rest:
        with contextlib.suppress(ValueError):  # it may be complete except for the line break
            rows.append(conform(parse_json(rest, str(path)), kind, str(path)))
        write_rows(path, rows)
    return rows


def write_rows(path: str | Path, rows: Iterable[Any]) -> Path:
    """Writes a JSON Lines file atomically, one value per line."""
    return write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def append_row(path: str | Path, row: Any) -> None:
    """Appends a value to a JSON Lines file, which is created if needed."""
    with open(path, "a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(row) + "\n")


def save(path: str | Path, kind: str, tensors: dict[str, Tensor], header: dict[str, Any]) -> Path:
    """Writes tensors and a JSON header as one safetensors file, atomically.

    Args:
        path: output path; its folder is created if needed.
        kind: type of the content, such as "tokens" or "pipeline"; `load` requires the same.
        tensors: tensors by name, on any device.
        header: plain values; the versions of fewtokens, torch and Python are added.

    Returns:
        `path`.

    Raises:
        OSError: the disk is full, or the path is not writable.
    """
    path = Path(path)
    with atomic_file(path) as temporary:
        write_tensors(temporary, kind, tensors, header, path)
    return path


def write_tensors(
    temporary: Path, kind: str, tensors: dict[str, Tensor], header: dict[str, Any], path: str | Path
) -> None:
    """Writes the content of `save` to a temporary file; errors name `path`."""
    versions = {
        "fewtokens": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
    text = json.dumps({"kind": kind, "version": FORMAT_VERSION, "versions": versions, **header})
    # safetensors does not write tensors that share storage, such as expanded views.
    copies = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    try:
        save_file(copies, temporary, metadata={"format": "pt", "fewtokens": text})
    except SafetensorError as error:  # neither an OSError nor a ValueError
        raise as_os_error(error, path) from None


def as_os_error(error: SafetensorError, path: str | Path) -> OSError:
    """Converts an error of safetensors while writing to the OSError behind it."""
    message = str(error)
    for code in (*DISK_FULL_ERRORS, errno.EACCES, errno.EIO):
        if f"os error {code}" in message or os.strerror(code) in message:
            return OSError(code, os.strerror(code), str(path))
    return OSError(errno.EIO, f"cannot be written ({message})", str(path))


def load(path: str | Path, kind: str, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a file written by `save`.

    Args:
        path: the file.
        kind: the type of content that it must have.
        device: device of the tensors.

    Returns:
        The tensors by name, and the header.

    Raises:
        Damaged: the file is truncated or corrupt.
        ValueError: the file does not exist, was not written by fewtokens, is of another type or of a newer format.
    """
    header = load_header(path, kind)
    try:
        with _in_utf8(path) as readable, safe_open(readable, framework="pt", device=str(device)) as file:
            # Copies, since memory-mapped tensors crash the process if the file is truncated later.
            return {name: file.get_tensor(name).clone() for name in file.keys()}, header  # noqa: SIM118
    except SafetensorError as error:
        raise CorruptFileError(f"{path}: invalid safetensors file ({one_line(error)})") from None


def load_header(path: str | Path, kind: str | None = None) -> dict[str, Any]:
    """Reads the JSON header of a file written by `save`, without its tensors; raises the errors of `load`.

    Args:
        path: the file.
        kind: the type of content that it must have; None for any.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with _in_utf8(path) as readable, safe_open(readable, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CorruptFileError(f"{path}: invalid safetensors file ({one_line(error)}); was it cut short?") from None
    if "fewtokens" not in metadata:
        raise ValueError(f"{path}: a safetensors file that was not written by fewtokens")
    try:
        header = conform(
            parse_json(metadata["fewtokens"], f"{path}: its header"), dict[str, Any], f"{path}: its header"
        )
        version = conform(header.get("version", 0), int, f"{path}: version in its header")
    except ValueError as error:
        raise CorruptFileError(str(error)) from None
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path}: has format version {version}, this fewtokens reads up to {FORMAT_VERSION}; update fewtokens"
        )
    if kind is not None and header.get("kind") != kind:
        raise ValueError(f"{path}: contains {one_line(header.get('kind'))}, not {kind}")
    return header


@contextmanager
def _in_utf8(path: str | Path) -> Iterator[Path]:
    """Yields a path to the same file that is valid UTF-8, as safetensors requires: `path` or a temporary symlink."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder) / "file"
            link.symlink_to(os.path.abspath(path))
            yield link
    else:
        yield Path(path)


def check_fit(expected: dict[str, Tensor], tensors: dict[str, Tensor], message: str) -> None:
    """Checks that tensors have the expected names and shapes.

    Args:
        expected: tensors by name, of which only the shapes are read.
        tensors: the tensors to check.
        message: prefix of the error message.

    Raises:
        ValueError: names up to 5 tensors that are missing, unexpected or of a different shape.
    """
    expected_shapes, shapes = ({name: tuple(value.shape) for name, value in t.items()} for t in (expected, tensors))
    different = {name for name in expected_shapes.keys() & shapes.keys() if expected_shapes[name] != shapes[name]}
    for problem, names in (
        ("missing", expected_shapes.keys() - shapes.keys()),
        ("unexpected", shapes.keys() - expected_shapes.keys()),
        ("of a different shape", different),
    ):
        if names:
            listing = ", ".join(one_line(name) for name in sorted(names)[:5]) + (" ..." if len(names) > 5 else "")
            raise ValueError(f"{message}; {problem}: {listing}")
