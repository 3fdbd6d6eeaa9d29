"""What there is to learn from: files and their classes, out of folders, lists, annotation files and tars."""

from __future__ import annotations

import csv
import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fewtokens.data.tars import read_tars
from fewtokens.video.images import is_image

FORMATS = ("folder", "csv", "jsonl", "kinetics", "kinetics_csv", "charades", "avid", "webdataset")
VIDEOS = frozenset([".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".gif"])


@dataclass(frozen=True)
class Item:
    """One labelled image or video.

    Attributes:
        path: the file, or the tar that holds it.
        labels: numbers of its classes; one, or any number where there are many to one item.
        start, end: seconds of the part that is meant; None is the whole.
        member, offset, size: name, first byte and bytes inside a tar, where `path` is one.
    """

    path: str
    labels: tuple[int, ...]
    start: float | None = None
    end: float | None = None
    member: str | None = None
    offset: int = 0
    size: int = 0

    @property
    def is_picture(self) -> bool:
        """Whether it is a single image, by the end of its name."""
        return is_image(Path(self.member or self.path))

    @property
    def name(self) -> str:
        """What to call it in a report."""
        return self.path if self.member is None else f"{self.path}::{self.member}"


@dataclass(frozen=True)
class Listing:
    """Items and the names of their classes.

    Attributes:
        items: in the order of the list.
        classes: names, by number.
        multi_label: whether an item may have several classes.
        missing: files that a list names and that are not there.
        left_out: lines or members that are no item, with the reason.
    """

    items: tuple[Item, ...]
    classes: tuple[str, ...]
    multi_label: bool = False
    missing: tuple[str, ...] = ()
    left_out: tuple[str, ...] = field(default=())

    def split(self, share: float, seed: int = 0) -> tuple[Listing, Listing]:
        """Two listings: the second with this share of every class, drawn with the seed (at least one of each).

        Raises:
            ValueError: a share outside of (0,1), or a class of a single item.
        """
        if not 0 < share < 1:
            raise ValueError(f"the share for validation must be in (0, 1), got {share}")
        by_class: dict[tuple[int, ...], list[Item]] = defaultdict(list)
        for item in self.items:
            by_class[item.labels[:1]].append(item)
        held: set[Item] = set()
        for labels, items in sorted(by_class.items()):
            if len(items) < 2:
                name = self.classes[labels[0]] if labels else "(none)"
                raise ValueError(f"class {name!r} has a single item, so none is left for validation")
            count = min(len(items) - 1, max(1, round(share * len(items))))
            held |= set(random.Random(f"{seed} {labels}").sample(items, count))
        return (
            replace(self, items=tuple(item for item in self.items if item not in held)),
            replace(self, items=tuple(item for item in self.items if item in held), missing=(), left_out=()),
        )


@dataclass(frozen=True)
class _Row:
    """A line of a list before names become numbers."""

    path: str
    labels: tuple[str, ...]
    start: float | None = None
    end: float | None = None
    member: str | None = None
    offset: int = 0
    size: int = 0


def read_listing(
    source: str | Path,
    *,
    kind: str | None = None,
    root: str | Path | None = None,
    classes: Sequence[str] | None = None,
) -> Listing:
    """Reads labelled files.

    Args:
        source: a folder with one folder for each class; a .csv or .jsonl with path and label (and start, end in
            seconds); a .txt with "path label" or "path,label" a line (Kinetics lists); Kinetics' own .csv (label,
            youtube_id, time_start, time_end); Charades' .csv; AViD's .json; a tar or a folder of tars (WebDataset:
            members with the same name and .cls or .json beside the image or video).
        kind: one of `FORMATS`; found out where not said.
        root: where the files of a list lie; its own folder where not said.
        classes: names by number, from the listing that was trained on; otherwise those found, sorted (numbers by
            number).

    Raises:
        ValueError: nothing there, a format that cannot be read, a class that is not among `classes`.
    """
    source = Path(source)
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    kind = kind or _guess(source)
    if kind not in FORMATS:
        raise ValueError(f"the format must be one of {', '.join(FORMATS)}, got {kind!r}")
    left_out: list[str] = []
    missing: list[str] = []
    base = Path(root) if root is not None else source.parent
    if kind == "folder":
        rows: Iterable[_Row] = _folder(source)
    elif kind == "webdataset":
        rows = (_Row(*row) for row in read_tars(source, left_out))
    else:
        rows = _located(_READERS[kind](source, left_out), base, missing)
    found = list(rows)
    multi_label = kind == "charades" or any(len(row.labels) != 1 for row in found)
    if not found:
        many = f"none of the {len(missing)} files that it names is under {base}; say where they are" if missing else ""
        raise ValueError(f"{source}: {many or 'no labelled image or video found'}")
    known = tuple(classes) if classes is not None else _class_names(found, kind)
    number = {name: n for n, name in enumerate(known)}
    if strange := sorted({label for row in found for label in row.labels} - number.keys()):
        some = ", ".join(map(repr, strange[:5])) + (" ..." if len(strange) > 5 else "")
        raise ValueError(f"{source}: has classes that were not trained on: {some}; known are {len(known)} others")
    items = tuple(
        Item(row.path, tuple(number[n] for n in row.labels), row.start, row.end, row.member, row.offset, row.size)
        for row in found
    )
    return Listing(items, known, multi_label, tuple(missing), tuple(left_out))


def _guess(source: Path) -> str:
    if source.is_dir():
        return "webdataset" if any(source.glob("*.tar")) else "folder"
    suffix = source.suffix.lower()
    if suffix == ".csv":
        with source.open(newline="", encoding="utf-8", errors="replace") as file:
            head = [name.strip().lower() for name in next(csv.reader(file), [])]
        if "youtube_id" in head:
            return "kinetics_csv"
        return "charades" if {"id", "actions"} <= set(head) else "csv" if "path" in head else "kinetics"
    by_suffix = {".jsonl": "jsonl", ".json": "avid", ".txt": "kinetics", ".tar": "webdataset"}
    if suffix not in by_suffix:
        raise ValueError(f"{source}: not a known list; give a folder, .csv, .jsonl, .json, .txt or .tar")
    return by_suffix[suffix]


def _class_names(rows: Sequence[_Row], kind: str) -> tuple[str, ...]:
    names = {label for row in rows for label in row.labels}
    if kind == "charades":
        return tuple(f"c{n:03d}" for n in range(157))
    if all(name.isdecimal() for name in names) and kind != "folder":
        # Numbers are the classes themselves; gaps stay.
        highest = max(int(name) for name in names)
        if highest < max(1000, 10 * len(names)):
            return tuple(str(n) for n in range(highest + 1))
    return tuple(sorted(names, key=_natural))


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _folder(source: Path) -> Iterator[_Row]:
    for folder in sorted((f for f in source.iterdir() if f.is_dir() and not f.name.startswith(".")), key=_by_name):
        for file in sorted((f for f in folder.rglob("*") if is_image(f) or f.suffix.lower() in VIDEOS), key=_by_name):
            if not file.name.startswith("."):
                yield _Row(str(file), (folder.name,))


def _by_name(path: Path) -> list[tuple[int, str]]:
    return _natural(path.name)


def _located(rows: Iterable[_Row], base: Path, missing: list[str]) -> Iterator[_Row]:
    """The rows whose file is there, under `base`; a name that leads out of `base` is refused."""
    for row in rows:
        path = Path(row.path)
        if not path.is_absolute():
            if ".." in path.parts:
                raise ValueError(f"the list names {row.path!r}, which leads out of {base}")
            path = base / path
        if path.exists():
            yield replace(row, path=str(path))
        else:
            missing.append(row.path)


def _csv(source: Path, left_out: list[str]) -> Iterator[_Row]:
    with source.open(newline="", encoding="utf-8", errors="replace") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            names = {key.strip().lower(): (value or "").strip() for key, value in row.items() if isinstance(key, str)}
            if not names.get("path") or "label" not in names:
                left_out.append(f"{source}, line {number}: no path or no label")
                continue
            labels = tuple(part.strip() for part in names["label"].split(";") if part.strip())
            yield _timed(_Row(names["path"], labels), names.get("start"), names.get("end"), source, number)


def _jsonl(source: Path, left_out: list[str]) -> Iterator[_Row]:
    with source.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                said = json.loads(line)
                label = said["label"]
                labels = tuple(str(part) for part in (label if isinstance(label, list) else [label]))
                row = _Row(str(said["path"]), labels)
            except (json.JSONDecodeError, KeyError, TypeError):
                left_out.append(f"{source}, line {number}: not an object with path and label")
                continue
            yield _timed(row, said.get("start"), said.get("end"), source, number)


def _timed(row: _Row, start: object, end: object, source: Path, number: int) -> _Row:
    try:
        seconds = [None if value in (None, "") else float(str(value)) for value in (start, end)]
    except ValueError:
        raise ValueError(f"{source}, line {number}: start and end must be seconds, got {start!r} and {end!r}") from None
    return replace(row, start=seconds[0], end=seconds[1])


def _kinetics(source: Path, left_out: list[str]) -> Iterator[_Row]:
    """Lines "path label" or "path,label"; paths may hold spaces."""
    for number, line in enumerate(source.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        match = re.fullmatch(r"\s*(.+?)[\s,]+([^\s,]+)\s*", line)
        if match:
            yield _Row(match[1].strip().strip('"'), (match[2],))
        elif line.strip():
            left_out.append(f"{source}, line {number}: not 'path label'")


def _kinetics_csv(source: Path, left_out: list[str]) -> Iterator[_Row]:
    """label, youtube_id, time_start, time_end: files ID_000010_000020.mp4, in a folder for each class or not."""
    with source.open(newline="", encoding="utf-8", errors="replace") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                label, name = row["label"].strip(), row["youtube_id"].strip()
                stem = f"{name}_{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}"
            except (KeyError, ValueError, AttributeError):
                left_out.append(f"{source}, line {number}: no label, youtube_id or times")
                continue
            places = [source.parent, *(source.parent / part for part in ("train", "val", "test", "videos"))]
            files = [p / f / f"{stem}.mp4" for p in places for f in ("", label, label.replace(" ", "_"))]
            there = next((file for file in files if file.exists()), None)
            yield _Row(str(there) if there else f"{label}/{stem}.mp4", (label,))


def _charades(source: Path, left_out: list[str]) -> Iterator[_Row]:
    """Charades_v1_train.csv: id and actions "c092 11.90 21.20;c147 0.00 12.60"; files ID.mp4. A video's classes
    are all that occur in it."""
    with source.open(newline="", encoding="utf-8", errors="replace") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            if not row.get("id") or row.get("actions") is None:
                left_out.append(f"{source}, line {number}: no id or no actions")
                continue
            actions = [part.split()[0] for part in row["actions"].split(";") if part.strip()]
            yield _Row(f"{row['id'].strip()}.mp4", tuple(dict.fromkeys(actions)))


def _avid(source: Path, left_out: list[str]) -> Iterator[_Row]:
    """{"file.mp4": "class"}; those of class "none" are left out."""
    try:
        said = json.loads(source.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{source}: not JSON ({error})") from None
    if not isinstance(said, dict) or not all(isinstance(value, str) for value in said.values()):
        raise ValueError(f"{source}: not an object of file names and classes, as AViD's annotations are")
    for name, label in said.items():
        if label == "none":
            left_out.append(f"{name}: has no class")
        else:
            yield _Row(name, (label,))


_READERS: dict[str, Callable[[Path, list[str]], Iterator[_Row]]] = {
    "csv": _csv,
    "jsonl": _jsonl,
    "kinetics": _kinetics,
    "kinetics_csv": _kinetics_csv,
    "charades": _charades,
    "avid": _avid,
}
