"""Files that are never half written and never guessed at: safetensors with a JSON header, text, JSON.

A file is written in a private folder beside its place and renamed when it is whole. Reading never unpickles
anything, and every mistake in a file is a ValueError of one line.
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

from fewtokens.core.plain import conform, in_a_line
from fewtokens.version import __version__

try:
    import fcntl
except ImportError:  # Windows: nothing tells a dead writer from a live one, so nothing is swept
    fcntl = None  # type: ignore[assignment]

FORMAT_VERSION = 2

# What the system says where nothing more can be written, whatever the file.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class Damaged(ValueError):
    """A file that is cut short or otherwise not what its writer left; one of another kind is a plain ValueError."""


# The private folder of one writer. It is locked while the writer lives; the name matches no pattern of results.
_PREFIX, _SUFFIX = ".fewtokens-", ".partial"
_swept: set[Path] = set()


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path that replaces `path` on success and is removed on failure.

    The temporary file lies in a private folder beside `path`, so that what another library leaves there after a
    kill goes with it. It has no suffix: tell the writer the format. The content reaches the disk before the name
    does. What killed processes left in the folder is removed first, see `sweep`.
    """
    path = Path(path)
    with _private_place(path.parent) as folder:
        temporary = folder / "file"
        yield temporary
        _settle(temporary)
        os.replace(temporary, path)
        _flush_folder(path.parent)


@contextmanager
def whole_folder(folder: str | Path, last: str) -> Iterator[Path]:
    """Yields a private folder; on success what was written there moves into `folder`, on failure it is removed.

    A kill between two moves must not leave files of two saves that look like one. So the file `last`, without which
    `folder` means nothing, is removed before the first move and arrives after all others: until then the folder is
    refused, not misread. The moves themselves take no space on the disk, and no time to speak of.

    Args:
        folder: made if needed; its other files stay, and a folder in it of the same name as a new one is replaced.
        last: the name of that file, one of those that are written.
    """
    folder = Path(folder)
    with _private_place(folder) as private:
        yield private
        for file in private.rglob("*"):
            if file.is_file():
                _settle(file)
        names = sorted(path.name for path in private.iterdir() if path.name != last)
        (folder / last).unlink(missing_ok=True)
        for name in names:
            if (folder / name).is_dir():
                os.replace(folder / name, private / f"{name}.before")
            os.replace(private / name, folder / name)
        _flush_folder(folder)
        os.replace(private / last, folder / last)
        _flush_folder(folder)


@contextmanager
def _private_place(parent: Path) -> Iterator[Path]:
    """A locked folder in `parent`, removed at the end; what killed processes left in `parent` is removed first."""
    parent.mkdir(parents=True, exist_ok=True)
    if parent not in _swept:
        sweep(parent)
    folder, lock = _private_folder(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _settle(file: Path) -> None:
    """Makes the content of a new file last, and gives it the permissions of any new file."""
    with open(file, "rb+") as opened:
        os.fsync(opened.fileno())
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(file, 0o666 & ~umask)  # some writers make files for their owner alone


def sweep(folder: str | Path) -> None:
    """Removes what killed writers left in `folder`; files that a live process is writing stay."""
    folder = Path(folder)
    _swept.add(folder)
    if fcntl is None or not folder.is_dir():
        return
    for left in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            lock = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)


def _private_folder(parent: Path) -> tuple[Path, int | None]:
    """A new locked folder in `parent` and the descriptor that holds its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=_PREFIX, suffix=_SUFFIX))
        if fcntl is None:
            return folder, None
        lock = None
        try:
            lock = os.open(folder, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # another process swept it before it was locked, or the file system has no locks
            if lock is not None:
                os.close(lock)
            if folder.is_dir():
                return folder, None
            continue
        if folder.is_dir():
            return folder, lock
        os.close(lock)


def _flush_folder(folder: Path) -> None:
    """Makes a rename in `folder` last through a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: str | Path, text: str) -> Path:
    """Writes UTF-8 text as a whole file; file names that are not UTF-8 are kept in it as they are."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="\n")
    return Path(path)


def write_json(path: str | Path, value: Any) -> Path:
    """Writes plain values as indented JSON, as a whole file."""
    return write_text(path, json.dumps(value, indent=2) + "\n")


def read_text(path: str | Path) -> str:
    """Reads UTF-8 text, with or without a byte order mark.

    Raises:
        ValueError: no such file, or not UTF-8; one line that says what to do.
        OSError: a file that the system refuses to read.
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
    """The lines of a UTF-8 text that hold anything, without their ends, numbered from 1; raises as `read_text`.

    Lines end with LF, CRLF or CR and with nothing else, so that the other separators of Unicode stay inside names.
    """
    for number, line in enumerate(io.StringIO(read_text(path), newline=None), start=1):
        if line.strip():
            yield number, line.rstrip("\n")


class Record(NamedTuple):
    """A row of a table.

    Attributes:
        line: where it ends in the file, counted from 1.
        cells: text by name of the column, stripped; "" where the row is short.
        surplus: cells without a column, or less than 0 where the row is short.
    """

    line: int
    cells: dict[str, str]
    surplus: int


def read_table(path: str | Path) -> Iterator[Record]:
    """The rows of a CSV with a header, its columns separated by commas, semicolons or tabs, whichever the header has.

    Blank rows are left out, and empty cells at the end of a row, which spreadsheets write, are no surplus.

    Raises:
        ValueError: as `read_text`; a quote that is never closed, or a cell too long to be one.
    """
    rows = _rows(path)
    header = [name.strip() for name in next(rows, (0, []))[1]]
    for line, row in rows:
        cells = [cell.strip() for cell in row]
        while len(cells) > len(header) and not cells[-1]:
            cells.pop()
        there = dict(zip(header, cells + [""] * (len(header) - len(cells)), strict=False))
        yield Record(line, there, len(cells) - len(header))


def read_header(path: str | Path) -> list[str]:
    """The names of the columns that a text has if it is a table; raises as `read_text`."""
    first = next((line for _, line in read_lines(path)), "")
    try:
        return [name.strip() for name in next(csv.reader([first], delimiter=_separator(first)), [])]
    except csv.Error:
        return []


def _separator(header: str) -> str:
    outside = "".join(header.split('"')[::2])  # of the quotes
    return max(",;\t", key=outside.count)


def _rows(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    text = read_text(path)
    first = next((line for line in io.StringIO(text, newline=None) if line.strip()), "")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_separator(first), strict=True)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: not a readable CSV ({error})") from None


def parse_json(text: str, what: str) -> Any:
    """Reads JSON text; `what` begins the message.

    Raises:
        ValueError: not JSON, nested too deeply to be anything of use, or with text that is not Unicode.
    """
    try:
        value = json.loads(text)
        if "\\ud" in text or "\\uD" in text:
            # Half a character could be neither written nor shown; what stands for bytes of a file name can.
            json.dumps(value, ensure_ascii=False).encode(errors="surrogateescape")
    except RecursionError:
        raise ValueError(f"{what}: nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError(f"{what}: not readable JSON (it has half of a surrogate pair)") from None
    except ValueError as error:
        raise ValueError(f"{what}: not readable JSON ({error})") from None
    return value


def read_json(path: str | Path, kind: Any = Any) -> Any:
    """Reads a JSON file and checks what it holds, see `fewtokens.core.plain.conform`.

    Raises:
        ValueError: no such file, not JSON, or not of this kind; one line that names the file and the place.
        OSError: a file that the system refuses to read.
    """
    return conform(parse_json(read_text(path), str(path)), kind, str(path))


def read_rows(path: str | Path, kind: Any = Any) -> list[Any]:
    """Reads a file of a JSON value on each line, to which lines may then be added by `add_row`.

    A last line that was cut when its writer was killed is left out, and taken out of the file.

    Returns:
        the values; none where there is no file.

    Raises:
        ValueError: another line is not JSON, or not of this kind; one line that names it.
    """
    path = Path(path)
    if not path.exists():
        return []
    text = read_text(path)
    *whole, rest = text.split("\n")
    rows = [
        conform(parse_json(line, f"{path}: line {n}"), kind, f"{path}: line {n}") for n, line in enumerate(whole, 1)
    ]
    if rest:
        with contextlib.suppress(ValueError):  # whole but for the end of the line
            rows.append(conform(parse_json(rest, str(path)), kind, str(path)))
        write_rows(path, rows)
    return rows


def write_rows(path: str | Path, rows: Iterable[Any]) -> Path:
    """Writes a JSON value on each line, as a whole file."""
    return write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def add_row(path: str | Path, row: Any) -> None:
    """Adds a line of JSON to a file, made if needed."""
    with open(path, "a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(row) + "\n")


def save(path: str | Path, kind: str, tensors: dict[str, Tensor], header: dict[str, Any]) -> Path:
    """Writes `tensors` and a JSON `header` (plain values only) as one safetensors file.

    Args:
        path: where to; the folder is made if needed.
        kind: what the file holds ("tokens", "pipeline"); `load` asks for the same.
        tensors: written as they are, on the CPU, contiguous.
        header: must go through JSON; the versions of fewtokens, torch and Python are added.

    Raises:
        OSError: the disk is full, or the place cannot be written to.
    """
    versions = {
        "fewtokens": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
    text = json.dumps({"kind": kind, "version": FORMAT_VERSION, "versions": versions, **header})
    path = Path(path)
    with whole_file(path) as temporary:
        # Tensors that share storage (expanded views) are written out in full.
        whole = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
        try:
            save_file(whole, temporary, metadata={"format": "pt", "fewtokens": text})
        except SafetensorError as error:  # neither an OSError nor a ValueError
            raise as_os_error(error, path) from None
    return path


def as_os_error(error: SafetensorError, path: str | Path) -> OSError:
    """What safetensors says when it cannot write, as the system would have said it."""
    message = str(error)
    for code in (*NO_ROOM, errno.EACCES, errno.EIO):
        if f"os error {code}" in message or os.strerror(code) in message:
            return OSError(code, os.strerror(code), str(path))
    return OSError(errno.EIO, f"cannot be written ({message})", str(path))


def load(path: str | Path, kind: str, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `save` wrote: the tensors and the header.

    Raises:
        ValueError: one line that says what is wrong: no such file, not safetensors, truncated, written by
            something else, another kind, a newer format.
    """
    header = load_header(path, kind)
    try:
        with _in_utf8(path) as readable, safe_open(readable, framework="pt", device=str(device)) as file:
            # Copies, since mapped tensors end the process when somebody cuts the file short.
            return {name: file.get_tensor(name).clone() for name in file.keys()}, header  # noqa: SIM118
    except SafetensorError as error:
        raise Damaged(f"{path}: not a readable safetensors file ({in_a_line(error)})") from None


def load_header(path: str | Path, kind: str | None = None) -> dict[str, Any]:
    """The JSON header alone, without reading the tensors; raises ValueError as `load` does."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with _in_utf8(path) as readable, safe_open(readable, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise Damaged(f"{path}: not a readable safetensors file ({in_a_line(error)}); was it cut short?") from None
    if "fewtokens" not in metadata:
        raise ValueError(f"{path}: a safetensors file, but not one that fewtokens wrote")
    try:
        header = conform(
            parse_json(metadata["fewtokens"], f"{path}: its header"), dict[str, Any], f"{path}: its header"
        )
        version = conform(header.get("version", 0), int, f"{path}: version in its header")
    except ValueError as error:
        raise Damaged(str(error)) from None
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path}: written in format {version}, this fewtokens reads up to {FORMAT_VERSION}; update fewtokens"
        )
    if kind is not None and header.get("kind") != kind:
        raise ValueError(f"{path}: holds {in_a_line(header.get('kind'))}, not {kind}")
    return header


@contextmanager
def _in_utf8(path: str | Path) -> Iterator[Path]:
    """A path to the same file that is UTF-8, which safetensors asks for: itself, or a link for the time being."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder) / "file"
            link.symlink_to(os.path.abspath(path))
            yield link
    else:
        yield Path(path)


def check_fit(wanted: dict[str, Tensor], found: dict[str, Tensor], says: str) -> None:
    """Raises a ValueError, beginning with `says`, that names tensors missing, left over or of another shape."""
    needed, there = ({name: tuple(value.shape) for name, value in part.items()} for part in (wanted, found))
    for problem, names in (
        ("lacks", needed.keys() - there.keys()),
        ("has, of no use here,", there.keys() - needed.keys()),
        ("has in another shape", {name for name in needed.keys() & there.keys() if needed[name] != there[name]}),
    ):
        if names:
            some = ", ".join(in_a_line(name) for name in sorted(names)[:5]) + (" ..." if len(names) > 5 else "")
            raise ValueError(f"{says}; it {problem} {some}")
