"""Reads lists of labeled files, line by line, in the formats that data sets are published in."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewtokens.core.files import parse_json, read_json, read_lines, read_table
from fewtokens.core.plain import conform
from fewtokens.data.folders import Lookup
from fewtokens.video.images import is_image

VIDEOS = frozenset([".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".gif"])
# Longer than a path may be on any system.
_MAX_PATH = 4096
_SEPARATORS = re.compile(r"[\s,;]+")


@dataclass(frozen=True)
class Row:
    """A line of a list, with the names of its classes; `labels` is empty if the line has none."""

    where: str
    path: str
    labels: tuple[str, ...]
    start: float | None = None
    end: float | None = None
    member: str | None = None
    offset: int = 0
    size: int = 0


def split_line(line: str, exists: Callable[[str], object]) -> tuple[str, str]:
    """Splits a line into its path and the rest: a label, a number of frames and a label, or nothing.

    Paths and labels may contain spaces. The path is the longest prefix that exists; if none exists, the longest one
    with the suffix of an image or a video; otherwise all but the last word.

    Args:
        line: parts separated by spaces, tabs, commas or semicolons; the path may be in double quotes.
        exists: whether a file or folder with a given name exists.
    """
    line = line.strip()
    if line.startswith('"') and (close := line.find('"', 1)) > 0:
        return line[1:close], _SEPARATORS.sub(" ", line[close + 1 :], count=1).strip()
    ends = [match.start() for match in _SEPARATORS.finditer(line)] + [len(line)]
    short = [end for end in ends if end <= _MAX_PATH]
    media = [end for end in short if _is_media(line[:end])]
    split = next((end for end in media[::-1] if exists(line[:end])), None) or (media[-1] if media else None)
    if split is None:
        split = next((end for end in short[::-1] if exists(line[:end])), None)
    if split is None:
        split = ends[-2] if len(ends) > 1 else ends[-1]
    return line[:split], line[split:].strip(" \t,;").strip('"')


def _is_media(name: str) -> bool:
    return name.lower().endswith((*VIDEOS, ".npy")) or is_image(Path(name))


def read_csv(source: Path, lookup: Lookup, skipped: list[str]) -> Iterator[Row]:
    """Reads the columns path, label (several are separated by ";") and, optionally, start and end in seconds.

    In metadata.csv of a Hugging Face dataset (VideoFolder, ImageFolder) the path is called file_name.
    """
    for line, cells, surplus in read_table(source):
        where = f"{source}, line {line}"
        row = {name.lower(): cell for name, cell in cells.items()}
        row["path"] = row.get("path") or row.get("file_name", "")
        if not row["path"]:
            skipped.append(f"{where}: no path or no label")
        elif surplus > 0:
            skipped.append(f"{where}: more cells than the header; quote paths and labels that contain a comma")
        else:
            labels = tuple(part.strip() for part in row.get("label", "").split(";") if part.strip())
            yield _timed(Row(where, row["path"], labels), row.get("start"), row.get("end"))


def read_jsonl(source: Path, lookup: Lookup, skipped: list[str]) -> Iterator[Row]:
    """Reads one object per line: path, label (text, a number or a list) and, optionally, start and end in seconds.

    The path may be called file_name, as in `read_csv`.
    """
    for number, line in read_lines(source):
        where = f"{source}, line {number}"
        try:
            row = conform(parse_json(line, where), dict, where)
            path = conform(row.get("path", row.get("file_name")), str, f"{where}: path")
            labels = parse_labels(row.get("label"), f"{where}: label")
        except ValueError as error:
            skipped.append(f"{where}: not an object with path and label ({str(error).removeprefix(where)[2:]})")
            continue
        yield _timed(Row(where, path, labels), row.get("start"), row.get("end"))


def parse_labels(value: object, label: str) -> tuple[str, ...]:
    """The labels in a JSON value: text, a number or a list of them; () for null and empty text.

    Args:
        value: the JSON value.
        label: how an error refers to it.

    Raises:
        ValueError: the value has another type.
    """
    conform(value, str | int | None | list[str | int], label)
    parts = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(text for part in parts if (text := str(part).strip()))


def _timed(row: Row, start: object, end: object) -> Row:
    try:
        seconds = [None if value in (None, "") else float(str(value)) for value in (start, end)]
        if not all(value is None or math.isfinite(value) for value in seconds):
            raise ValueError
    except ValueError:
        raise ValueError(f"{row.where}: start and end must be seconds, got {start!r:.40} and {end!r:.40}") from None
    return replace(row, start=seconds[0], end=seconds[1])


def read_text_list(source: Path, lookup: Lookup, skipped: list[str]) -> Iterator[Row]:
    """Reads lines "path label", "path,label" or "path frames label" (Kinetics, SlowFast, mmaction); # is a comment."""
    lines: list[tuple[str, str, str]] = []
    for number, line in read_lines(source):
        if line.lstrip().startswith("#"):
            continue
        where = f"{source}, line {number}"
        path, rest = split_line(line, lookup.find)
        if rest or lookup.find(path) is not None or _is_media(path):
            lines.append((where, path, rest))
        else:
            skipped.append(f"{where}: not 'path label'")
    words = {where: _SEPARATORS.split(rest) for where, path, rest in lines if rest and lookup.find(path) is not None}
    has_frames = bool(words) and all(len(parts) > 1 and _is_number(parts[0]) for parts in words.values())
    for where, parts in words.items():
        labels = parts[1:] if has_frames else parts
        if len(labels) > 1 and all(map(_is_number, labels)):
            raise ValueError(
                f"{where}: {len(parts)} numbers after the path are ambiguous (frames, offsets or labels)"
                f"{'' if has_frames else ', and other lines have fewer'}; write a CSV with the columns path and label"
            )
    for where, path, rest in lines:
        label = "".join(_SEPARATORS.split(rest, maxsplit=1)[1:]) if has_frames else rest
        yield Row(where, path, (label,) if label else ())


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdecimal()


def read_kinetics(source: Path, lookup: Lookup, skipped: list[str]) -> Iterator[Row]:
    """Reads the columns label, youtube_id, time_start and time_end.

    The files are ID_000010_000020.mp4, with or without one folder per class.
    """
    for line, row, _ in read_table(source):
        where = f"{source}, line {line}"
        label, name = row.get("label", ""), row.get("youtube_id", "")
        try:
            stem = f"{name}_{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}"
        except (KeyError, ValueError, OverflowError):
            name = ""
        if not name:
            skipped.append(f"{where}: no label, youtube_id or times")
            continue
        paths = [os.path.join(p, f, f"{stem}.mp4") for p in ("", "train", "val", "test", "videos")
                 for f in dict.fromkeys(("", label, label.replace(" ", "_")))]  # fmt: skip
        path = next((path for path in paths if lookup.find(path) is not None), f"{label}/{stem}.mp4")
        yield Row(where, path, (label,) if label else ())


def read_charades(source: Path, lookup: Lookup, skipped: list[str]) -> Iterator[Row]:
    """Reads Charades_v1_train.csv: id and actions "c092 11.90 21.20;c147 0.00 12.60"; the files are ID.mp4.

    The classes of a video are all actions in it; there may be none.
    """
    for line, row, surplus in read_table(source):
        if not row.get("id") or "actions" not in row or surplus:
            skipped.append(f"{source}, line {line}: no id or no actions")
            continue
        actions = [part.split()[0] for part in row["actions"].split(";") if part.strip()]
        yield Row(f"{source}, line {line}", f"{row['id']}.mp4", tuple(dict.fromkeys(actions)))


def read_avid(source: Path, lookup: Lookup, skipped: list[str]) -> Iterator[Row]:
    """Reads {"file.mp4": "class"}; files of class "none" are skipped."""
    for name, label in read_json(source, dict[str, str | None]).items():
        if label == "none":
            skipped.append(f"{name}: has no class")
        else:
            yield Row(f"{source}, {name}", name, (label,) if label else ())


def is_fiftyone(folder: Path) -> bool:
    """Whether this is a folder that FiftyOne exported as a `FiftyOneDataset`."""
    return (folder / "metadata.json").is_file() and (folder / "samples.json").is_file()


def read_fiftyone(source: Path, lookup: Lookup, skipped: list[str]) -> Iterator[Row]:
    """Reads samples.json of a `FiftyOneDataset`: file paths, and the labels in fields of classifications.

    Labels are those of the field ground_truth, or of the only field of classifications. If there are several others,
    no label is read, and the name of each row lists these fields.
    """
    samples = read_json(source, dict[str, Any]).get("samples")
    samples = conform(samples, list[dict[str, Any]], f"{source}: samples")
    kinds = ("Classification", "Classifications")
    fields = {
        name: None for sample in samples for name, value in sample.items()
        if isinstance(value, dict) and value.get("_cls") in kinds
    }  # fmt: skip
    field = "ground_truth" if "ground_truth" in fields else next(iter(fields)) if len(fields) == 1 else None
    ambiguous = "" if field or not fields else f" (labels in several fields: {', '.join(fields)})"
    for number, sample in enumerate(samples, 1):
        where = f"{source}, sample {number}{ambiguous}"
        value = sample.get(field) or {}
        parts = value.get("classifications", [value]) if isinstance(value, dict) else []
        try:
            path = conform(sample.get("filepath"), str, f"{where}: filepath")
            names = [conform(part, dict[str, Any], where).get("label") for part in conform(parts, list[Any], where)]
            labels = parse_labels([name for name in names if name is not None], f"{where}: label")
        except ValueError as error:
            skipped.append(str(error))
            continue
        yield Row(where, path, labels)


READERS: dict[str, Callable[[Path, Lookup, list[str]], Iterator[Row]]] = {
    "csv": read_csv,
    "jsonl": read_jsonl,
    "kinetics": read_text_list,
    "kinetics_csv": read_kinetics,
    "charades": read_charades,
    "avid": read_avid,
    "fiftyone": read_fiftyone,
}


def class_names(rows: Sequence[Row]) -> tuple[str, ...] | None:
    """All numbers up to the highest, including gaps, if the labels are numbers; None if they are names."""
    names = {label for row in rows for label in row.labels}
    if not all(_is_number(name) and len(name) < 9 and str(int(name)) == name for name in names):
        return None
    highest = max(map(int, names))
    return tuple(map(str, range(highest + 1))) if highest < max(1000, 10 * len(names)) else None
