"""Lists of labelled files in the formats that data sets are published with, read line by line."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fewtokens.core.files import parse_json, read_json, read_lines, read_table
from fewtokens.core.plain import conform
from fewtokens.data.folders import Lookup
from fewtokens.video.images import is_image

VIDEOS = frozenset([".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".gif"])
# No path is longer than this anywhere.
_LONGEST = 4096
_SEPARATORS = re.compile(r"[\s,;]+")


@dataclass(frozen=True)
class Row:
    """A line of a list before names become numbers; without labels where the line has none."""

    where: str
    path: str
    labels: tuple[str, ...]
    start: float | None = None
    end: float | None = None
    member: str | None = None
    offset: int = 0
    size: int = 0


def split_line(line: str, there: Callable[[str], object]) -> tuple[str, str]:
    """The path that a line begins with, and the rest: a label, or a number of frames and a label, or nothing.

    Paths and labels may hold spaces. A path is the longest beginning that is there; of what is not there, what ends
    like an image or a video; otherwise all but the last word.

    Args:
        line: its parts separated by spaces, tabs, commas or semicolons; the path in double quotes or not.
        there: whether a file or folder of that name exists.
    """
    line = line.strip()
    if line.startswith('"') and (close := line.find('"', 1)) > 0:
        return line[1:close], _SEPARATORS.sub(" ", line[close + 1 :], count=1).strip()
    ends = [match.start() for match in _SEPARATORS.finditer(line)] + [len(line)]
    short = [end for end in ends if end <= _LONGEST]
    media = [end for end in short if _is_media(line[:end])]
    found = next((end for end in media[::-1] if there(line[:end])), None) or (media[-1] if media else None)
    if found is None:
        found = next((end for end in short[::-1] if there(line[:end])), None)
    if found is None:
        found = ends[-2] if len(ends) > 1 else ends[-1]
    return line[:found], line[found:].strip(" \t,;").strip('"')


def _is_media(name: str) -> bool:
    return name.lower().endswith((*VIDEOS, ".npy")) or is_image(Path(name))


def read_csv(source: Path, lookup: Lookup, left_out: list[str]) -> Iterator[Row]:
    """path and label (several with ";" between them), and start and end in seconds."""
    for line, cells, surplus in read_table(source):
        where = f"{source}, line {line}"
        said = {name.lower(): cell for name, cell in cells.items()}
        if not said.get("path"):
            left_out.append(f"{where}: no path or no label")
        elif surplus > 0:
            left_out.append(f"{where}: more cells than the header; put a path or label with a comma into quotes")
        else:
            labels = tuple(part.strip() for part in said.get("label", "").split(";") if part.strip())
            yield _timed(Row(where, said["path"], labels), said.get("start"), said.get("end"))


def read_jsonl(source: Path, lookup: Lookup, left_out: list[str]) -> Iterator[Row]:
    """An object on each line: path, label (text, a number or a list of them), and start and end in seconds."""
    for number, line in read_lines(source):
        where = f"{source}, line {number}"
        try:
            said = conform(parse_json(line, where), dict, where)
            path = conform(said.get("path"), str, f"{where}: path")
            labels = labels_of(said.get("label"), f"{where}: label")
        except ValueError as error:
            left_out.append(f"{where}: not an object with path and label ({str(error).removeprefix(where)[2:]})")
            continue
        yield _timed(Row(where, path, labels), said.get("start"), said.get("end"))


def labels_of(said: object, what: str) -> tuple[str, ...]:
    """The labels that a JSON value is: text, a number, a list of them; () for null and for empty text.

    Raises:
        ValueError: it is something else.
    """
    conform(said, str | int | None | list[str | int], what)
    parts = said if isinstance(said, list) else [] if said is None else [said]
    return tuple(text for part in parts if (text := str(part).strip()))


def _timed(row: Row, start: object, end: object) -> Row:
    try:
        seconds = [None if value in (None, "") else float(str(value)) for value in (start, end)]
        if not all(value is None or math.isfinite(value) for value in seconds):
            raise ValueError
    except ValueError:
        raise ValueError(f"{row.where}: start and end must be seconds, got {start!r:.40} and {end!r:.40}") from None
    return replace(row, start=seconds[0], end=seconds[1])


def read_words(source: Path, lookup: Lookup, left_out: list[str]) -> Iterator[Row]:
    """Lines "path label", "path,label" or "path frames label" (Kinetics, SlowFast, mmaction); # begins a comment."""
    found: list[tuple[str, str, str]] = []
    for number, line in read_lines(source):
        if line.lstrip().startswith("#"):
            continue
        where = f"{source}, line {number}"
        path, rest = split_line(line, lookup.find)
        if rest or lookup.find(path) is not None or _is_media(path):
            found.append((where, path, rest))
        else:
            left_out.append(f"{where}: not 'path label'")
    words = {where: _SEPARATORS.split(rest) for where, path, rest in found if rest and lookup.find(path) is not None}
    framed = bool(words) and all(len(some) > 1 and _is_number(some[0]) for some in words.values())
    for where, some in words.items():
        several = some[1:] if framed else some
        if len(several) > 1 and all(map(_is_number, several)):
            raise ValueError(
                f"{where}: {len(some)} numbers after the path, which may be frames, offsets or labels"
                f"{'' if framed else ', and other lines have fewer'}; write a CSV with the columns path and label"
            )
    for where, path, rest in found:
        label = "".join(_SEPARATORS.split(rest, maxsplit=1)[1:]) if framed else rest
        yield Row(where, path, (label,) if label else ())


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdecimal()


def read_kinetics(source: Path, lookup: Lookup, left_out: list[str]) -> Iterator[Row]:
    """label, youtube_id, time_start, time_end: files ID_000010_000020.mp4, in a folder for each class or not."""
    for line, row, _ in read_table(source):
        where = f"{source}, line {line}"
        label, name = row.get("label", ""), row.get("youtube_id", "")
        try:
            stem = f"{name}_{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}"
        except (KeyError, ValueError, OverflowError):
            name = ""
        if not name:
            left_out.append(f"{where}: no label, youtube_id or times")
            continue
        places = [os.path.join(p, f, f"{stem}.mp4") for p in ("", "train", "val", "test", "videos")
                  for f in dict.fromkeys(("", label, label.replace(" ", "_")))]  # fmt: skip
        there = next((place for place in places if lookup.find(place) is not None), f"{label}/{stem}.mp4")
        yield Row(where, there, (label,) if label else ())


def read_charades(source: Path, lookup: Lookup, left_out: list[str]) -> Iterator[Row]:
    """Charades_v1_train.csv: id and actions "c092 11.90 21.20;c147 0.00 12.60"; files ID.mp4. A video's classes
    are all that occur in it, and there may be none."""
    for line, row, surplus in read_table(source):
        if not row.get("id") or "actions" not in row or surplus:
            left_out.append(f"{source}, line {line}: no id or no actions")
            continue
        actions = [part.split()[0] for part in row["actions"].split(";") if part.strip()]
        yield Row(f"{source}, line {line}", f"{row['id']}.mp4", tuple(dict.fromkeys(actions)))


def read_avid(source: Path, lookup: Lookup, left_out: list[str]) -> Iterator[Row]:
    """{"file.mp4": "class"}; those of class "none" are left out."""
    for name, label in read_json(source, dict[str, str | None]).items():
        if label == "none":
            left_out.append(f"{name}: has no class")
        else:
            yield Row(f"{source}, {name}", name, (label,) if label else ())


READERS: dict[str, Callable[[Path, Lookup, list[str]], Iterator[Row]]] = {
    "csv": read_csv,
    "jsonl": read_jsonl,
    "kinetics": read_words,
    "kinetics_csv": read_kinetics,
    "charades": read_charades,
    "avid": read_avid,
}


def class_names(rows: Sequence[Row]) -> tuple[str, ...] | None:
    """The numbers up to the highest where the labels are numbers, gaps included; None where they are names."""
    names = {label for row in rows for label in row.labels}
    if not all(_is_number(name) and len(name) < 9 and str(int(name)) == name for name in names):
        return None
    highest = max(map(int, names))
    return tuple(map(str, range(highest + 1))) if highest < max(1000, 10 * len(names)) else None
