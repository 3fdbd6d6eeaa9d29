"""Resuming: which results of an earlier run exist, from which sources and settings, and whether they can be kept."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.markup import escape

from fewtokens.cli.console import log
from fewtokens.cli.errors import check_folder
from fewtokens.core.identity import describe_source, rename_encoder_keys
from fewtokens.core.keys import current_keys
from fewtokens.core.names import distinct_names, unique_paths
from fewtokens.core.plain import conform


def token_files(videos: list[Path], target: Path, chunked: bool = False) -> list[tuple[Path, Path]]:
    """Returns each video with its token file, or folder of chunks.

    Raises:
        ValueError: several videos for one file, or a path that is taken by something else.
    """
    videos = unique_paths(videos)
    if chunked and target.suffix == ".safetensors":
        raise ValueError(f"--chunked writes a folder, so --out must be a folder, got {target}")
    if target.suffix == ".safetensors" and not target.is_dir():
        if len(videos) > 1:
            raise ValueError(f"{len(videos)} videos cannot go into one file {target}; give a folder as --out")
        return [(videos[0], target)]
    check_folder(target, "a folder" if chunked or len(videos) > 1 else "a .safetensors file or a folder")
    suffix = "" if chunked else ".safetensors"
    jobs = [(video, target / f"{name}{suffix}") for video, name in zip(videos, distinct_names(videos), strict=True)]
    for _, path in jobs:
        if path.exists() and path.is_dir() != chunked:
            existing, needed = ("folder", "file") if path.is_dir() else ("file", "folder")
            raise ValueError(f"{path} is a {existing}, but a {needed} must be written there; give another --out")
    return jobs


def source_now(path: Path) -> dict[str, Any]:
    """Returns `describe_source` of an input.

    Raises:
        ValueError: no such file.
    """
    try:
        return describe_source(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None


class Inputs:
    """The inputs of a command, and the videos from which they were made, which no output may replace."""

    def __init__(self, *paths: Path | None) -> None:
        self._known: dict[tuple[int, int], str] = {}  # by device and number of the file
        given = [path for path in paths if path is not None]
        for path, what in [(path, "an input") for path in given] + [
            (video, f"the video of {path}") for path in given if (video := _video_of(path)) is not None
        ]:
            if path.exists():
                self._known.setdefault(_number(path), what)

    def check_output(self, target: Path) -> None:
        """Raises a ValueError if an output would replace one of them."""
        if target.exists() and (what := self._known.get(_number(target))) is not None:
            raise ValueError(f"--out {target} is {what} and would be overwritten; give another --out")


def _number(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _video_of(path: Path) -> Path | None:
    """The video from which a token file or an encoded video was made, as its header says; None for other files."""
    if path.suffix.lower() != ".safetensors":
        return None
    from fewtokens.core import files

    try:
        header = files.load_header(path)
    except ValueError:  # reported when it is read
        return None
    meta = header.get("meta")
    source = meta.get("source") if isinstance(meta, dict) else None
    name = source.get("path") if isinstance(source, dict) else None
    return Path(name) if isinstance(name, str) else None


def check_source(result: Path | str, before: Any, now: dict[str, Any], advice: str) -> None:
    """Compares the source noted in an earlier result with the current source.

    A source that was moved (nothing is left at the old path) matches by name, size and modification time.

    Args:
        result: start of the message.
        before: "source" of the result. now: from `describe_source`.
        advice: end of the message.

    Raises:
        ValueError: another source, or a source that has changed; names both.
    """
    if before is None:
        raise ValueError(f"{result} exists and was not written for this video; {advice}")
    if not isinstance(before, dict) or not {"path", "bytes", "mtime_ns"} <= before.keys():
        raise ValueError(f"{result} does not specify its source file (an earlier version wrote it); {advice}")
    same = all(before[name] == now[name] for name in ("bytes", "mtime_ns"))
    if before["path"] == now["path"]:
        if not same:
            raise ValueError(
                f"{result} was made from {now['path']}, which has changed since ({_describe(before)}, now "
                f"{_describe(now)}); {advice}"
            )
        return
    moved = same and os.path.basename(str(before["path"])) == os.path.basename(now["path"])
    if not moved or os.path.lexists(str(before["path"])):
        raise ValueError(f"{result} was made from {before['path']}, not from {now['path']}; {advice}")


def check_request(result: Path | str, before: dict[str, Any], request: dict[str, Any]) -> None:
    """Compares the settings of an earlier result with those requested.

    Raises:
        ValueError: they differ; names the settings.
    """
    plain, before = json.loads(json.dumps(request)), rename_encoder_keys(before)
    changed = []
    # Not saved if it is float32.
    for name in [*plain, *({"dtype"} & before.keys() - plain.keys())]:
        then, now = before.get(name), plain.get(name)
        if name == "reading" and isinstance(then, dict):  # its keys are the options of reading a video
            changed += [_change(key, then.get(key), now[key]) for key in now if then.get(key) != now[key]]
        elif then != now:
            changed.append(_change(name, then, now))
    if changed:
        raise ValueError(
            f"{result} was made with other settings: {', '.join(changed)}; give --overwrite, or another --out"
        )


def _describe(source: dict[str, Any]) -> str:
    return f"{source['bytes']} bytes, modified at {source['mtime_ns']} ns"


def report_damaged(error: Exception) -> None:
    """Prints that a damaged result will be written again."""
    log.print(f"{escape(' '.join(str(error).split()))}; writing it again", highlight=False, soft_wrap=True)


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Writes the settings of a new run, or compares them with those of the run that is resumed.

    Raises:
        ValueError: they differ; names the settings, and both values if they are short.
    """
    from fewtokens.core import files

    plain = json.loads(json.dumps(settings))
    if not path.exists():
        files.write_json(path, plain)
        return
    try:
        before = rename_encoder_keys(current_keys(files.read_json(path, dict[str, Any])))
    except ValueError as error:
        raise ValueError(
            f"{error}; remove it if the run in this folder has the same settings, or give another --out"
        ) from None
    if before != plain:
        names = [name for name in {**plain, **before} if before.get(name) != plain.get(name)]
        changed = ", ".join(_change(name, before.get(name), plain.get(name)) for name in names)
        raise ValueError(f"{path.parent} contains a run with other settings: {changed}; give another --out")


def _change(name: str, before: Any, now: Any) -> str:
    then, now = json.dumps(before), json.dumps(now)
    return f"{name} ({then}, now {now})" if len(then) + len(now) < 300 else name


def read_rows(path: Path, kind: Any = dict[str, Any]) -> list[dict[str, Any]]:
    """Reads the rows of an earlier run; lines that were cut off when it was stopped, or are damaged, are skipped."""
    return list(_lines(path, kind)) if path.exists() else []


def _lines(path: Path, kind: Any) -> Iterator[dict[str, Any]]:
    from fewtokens.core import files

    damaged = 0
    # A line may be cut off inside a character.
    for number, line in enumerate(path.read_bytes().split(b"\n")):
        if not line.strip():
            continue
        try:
            yield conform(files.parse_json(line.decode("utf-8"), f"line {number + 1}"), kind, f"line {number + 1}")
        except ValueError:
            damaged += 1
    if damaged:
        log.print(f"{escape(str(path))}: {damaged} damaged lines skipped; their results are computed again")


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Appends a line in one write, so that two runs can share a folder. First ends a line that was cut off."""
    text = json.dumps(row) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        end = os.lseek(handle, 0, os.SEEK_END)
        if end and os.pread(handle, 1, end - 1) != b"\n":
            text = "\n" + text
        rest = text.encode()
        while rest:  # a full disk takes a part, and raises at the next write
            rest = rest[os.write(handle, rest) :]
    finally:
        os.close(handle)
