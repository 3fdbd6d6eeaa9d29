"""What a run finds of an earlier one: which results are there, what they were made from, and what may be kept."""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from fewtokens.cli.console import log
from fewtokens.core.identity import source_of, with_current_names
from fewtokens.core.keys import current_keys
from fewtokens.core.plain import conform

# File systems take so many bytes in a name; suffixes are added to what is named here.
_MOST_BYTES = 255 - len(".safetensors")
# Names that a run gives to files of its own.
_RESERVED = ("failed.jsonl",)


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """A name for the result of each path, unlike all others also where case or composed letters do not count.

    The stem; where two stems are equal, all parts of the path; where that is not enough, or too long for a file, also
    some digits of a digest of the absolute path.
    """
    stems = Counter(_folded(path.stem) for path in paths)
    names = [
        path.stem
        if stems[_folded(path.stem)] == 1
        else "_".join(part for part in path.parts if part not in (path.anchor, "..", "."))
        for path in paths
    ]
    taken = Counter(_folded(name) for name in names)
    return [
        name if taken[_folded(name)] == 1 and _is_free(name) else _with_digest(name, path)
        for name, path in zip(names, paths, strict=True)
    ]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _is_free(name: str) -> bool:
    return (
        len(os.fsencode(name)) <= _MOST_BYTES
        and _folded(name) not in _RESERVED
        and not name.startswith(".fewtokens-")
        and bool(name.strip(". "))
    )


def _with_digest(name: str, path: Path) -> str:
    digest = hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:10]
    name = name.lstrip(".")
    while len(os.fsencode(name)) > _MOST_BYTES - len(digest) - 1:
        name = name[:-1]
    return f"{name}-{digest}"


def one_each(paths: Iterable[Path]) -> list[Path]:
    """The paths in their order, each place once."""
    found: dict[str, Path] = {}
    for path in paths:
        found.setdefault(os.path.abspath(path), path)
    return list(found.values())


def source_now(path: Path) -> dict[str, Any]:
    """What `source_of` says of a video at hand.

    Raises:
        ValueError: nothing is there.
    """
    try:
        return source_of(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None


def check_source(result: Path | str, made: Any, now: dict[str, Any], advice: str) -> None:
    """Compares what an earlier result says of its source with the source at hand.

    A source that has moved, so that nothing is left in the old place, fits by its name, size and time of change.

    Args:
        result: begins the message.
        made: "source" of the result. now: what `source_of` says.
        advice: ends the message.

    Raises:
        ValueError: another source, or the same one changed; names both.
    """
    if not isinstance(made, dict) or not {"path", "bytes", "mtime_ns"} <= made.keys():
        raise ValueError(f"{result} does not say which file it was made from (an earlier version wrote it); {advice}")
    same = all(made[name] == now[name] for name in ("bytes", "mtime_ns"))
    if made["path"] == now["path"]:
        if not same:
            raise ValueError(
                f"{result} was made from {now['path']} as it was before ({_said(made)}), which has changed "
                f"({_said(now)}); {advice}"
            )
        return
    moved = same and os.path.basename(str(made["path"])) == os.path.basename(now["path"])
    if not moved or os.path.lexists(str(made["path"])):
        raise ValueError(f"{result} was made from {made['path']}, not from {now['path']}; {advice}")


def check_request(result: Path | str, made: dict[str, Any], request: dict[str, Any]) -> None:
    """Compares what an earlier result was made with and what is asked for.

    Raises:
        ValueError: they differ; says in what.
    """
    plain, made = json.loads(json.dumps(request)), with_current_names(made)
    if changed := [name for name in plain if made.get(name) != plain[name]]:
        raise ValueError(
            f"{result} was made with other settings ({', '.join(changed)}); give --overwrite, or another --out"
        )


def _said(source: dict[str, Any]) -> str:
    return f"{source['bytes']} bytes, changed at {source['mtime_ns']} ns"


def tell_damaged(error: Exception) -> None:
    """The line that says that a damaged result is made again."""
    log.print(f"{escape(' '.join(str(error).split()))}; it is made again", highlight=False, soft_wrap=True)


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Writes the settings of a new run, or compares them with those of the one that goes on.

    Raises:
        ValueError: they differ; names what, and both values where they are short.
    """
    from fewtokens.core import files

    plain = json.loads(json.dumps(settings))
    if not path.exists():
        files.write_json(path, plain)
        return
    try:
        before = with_current_names(current_keys(files.read_json(path, dict[str, Any])))
    except ValueError as error:
        raise ValueError(
            f"{error}; remove it if the run beside it is of these settings, or give another --out"
        ) from None
    if before != plain:
        names = [name for name in {**plain, **before} if before.get(name) != plain.get(name)]
        changed = ", ".join(_change(name, before.get(name), plain.get(name)) for name in names)
        raise ValueError(f"{path.parent} holds a run with another {changed}; give another --out")


def _change(name: str, before: Any, now: Any) -> str:
    then, now = json.dumps(before), json.dumps(now)
    return f"{name} ({then}, now {now})" if len(then) + len(now) < 300 else name


def read_rows(path: Path, kind: Any = dict[str, Any]) -> list[dict[str, Any]]:
    """What an earlier run wrote; a line that was cut when it was stopped, or is otherwise no row, is left out."""
    return list(_lines(path, kind)) if path.exists() else []


def _lines(path: Path, kind: Any) -> Iterator[dict[str, Any]]:
    from fewtokens.core import files

    left_out = 0
    # A cut may lie inside of a letter.
    for number, line in enumerate(path.read_bytes().split(b"\n")):
        if not line.strip():
            continue
        try:
            yield conform(files.parse_json(line.decode("utf-8"), f"line {number + 1}"), kind, f"line {number + 1}")
        except ValueError:
            left_out += 1
    if left_out:
        log.print(f"{escape(str(path))}: {left_out} damaged lines left out; what they held is made again")


def append_row(path: Path, row: dict[str, Any]) -> None:
    """One line in one write, so that two runs may share a folder. A line cut before it stays a line of its own."""
    text = json.dumps(row) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        end = os.lseek(handle, 0, os.SEEK_END)
        if end and os.pread(handle, 1, end - 1) != b"\n":
            text = "\n" + text
        left = text.encode()
        while left:  # a disk that fills up takes a part, and says so at the next write
            left = left[os.write(handle, left) :]
    finally:
        os.close(handle)
