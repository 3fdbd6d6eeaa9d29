"""Listings: files and their classes from folders, lists, annotation files and tars."""

from __future__ import annotations

import random
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fewtokens.core.files import read_header
from fewtokens.data.folders import Lookup, natural, walk, warn_of_links
from fewtokens.data.lists import READERS, VIDEOS, Row, class_names, is_fiftyone
from fewtokens.data.tars import find_tars, read_tars
from fewtokens.video.images import is_image

FORMATS = ("folder", "csv", "jsonl", "kinetics", "kinetics_csv", "charades", "avid", "fiftyone", "webdataset")


@dataclass(frozen=True)
class Item:
    """One labeled image or video.

    Attributes:
        path: the file, or the tar that contains it.
        labels: indices of its classes; one, or any number if the listing is multi-label.
        start, end: the part that is used, in seconds; None for no limit.
        member, offset, size: name, offset and size in bytes inside a tar, if `path` is one.
    """

    path: str
    labels: tuple[int, ...]
    start: float | None = None
    end: float | None = None
    member: str | None = None
    offset: int = 0
    size: int = 0

    @property
    def is_image(self) -> bool:
        """Whether the item is a single image, by the suffix of its name."""
        return is_image(Path(self.member or self.path))

    @property
    def name(self) -> str:
        """The name in reports."""
        return self.path if self.member is None else f"{self.path}::{self.member}"


@dataclass(frozen=True)
class Listing:
    """Items and the names of their classes.

    Attributes:
        items: in the order of the list.
        classes: names, by index.
        multi_label: whether an item may have several classes.
        missing: files that a list names but that do not exist.
        skipped: skipped lines, members and links, with the reason.
    """

    items: tuple[Item, ...]
    classes: tuple[str, ...]
    multi_label: bool = False
    missing: tuple[str, ...] = ()
    skipped: tuple[str, ...] = field(default=())

    def split(self, share: float, seed: int = 0) -> tuple[Listing, Listing]:
        """Splits the items at random into two listings; the second gets a fraction of each class, at least one item.

        Args:
            share: the fraction, in (0,1).
            seed: random seed.

        Raises:
            ValueError: `share` is outside (0,1), or a class has a single item.
        """
        if not 0 < share < 1:
            raise ValueError(f"the validation fraction must be in (0, 1), got {share}")
        by_class: dict[tuple[int, ...], list[Item]] = defaultdict(list)
        for item in self.items:
            by_class[item.labels[:1]].append(item)
        held_out: set[Item] = set()
        for labels, items in sorted(by_class.items()):
            if len(items) < 2:
                name = self.classes[labels[0]] if labels else "(none)"
                raise ValueError(f"class {name!r} has a single item; a split needs at least two per class")
            count = min(len(items) - 1, max(1, round(share * len(items))))
            held_out |= set(random.Random(f"{seed} {labels}").sample(items, count))
        return (
            replace(self, items=tuple(item for item in self.items if item not in held_out)),
            replace(self, items=tuple(item for item in self.items if item in held_out), missing=(), skipped=()),
        )


def read_listing(
    source: str | Path,
    *,
    kind: str | None = None,
    root: str | Path | None = None,
    classes: Sequence[str] | None = None,
    labels: bool = True,
) -> Listing:
    """Reads a listing of labeled files.

    Args:
        source: a folder with one subfolder per class; a .csv or .tsv (separated by commas, semicolons or tabs) or
            .jsonl with path and label and, optionally, start and end in seconds; a .txt with one "path label",
            "path,label" or "path frames label" per line (Kinetics, mmaction); the .csv of Kinetics (label,
            youtube_id, time_start, time_end) or Charades; the .json of AViD; metadata.csv or metadata.jsonl of a
            Hugging Face dataset (VideoFolder, ImageFolder); a folder that FiftyOne exported (FiftyOneDataset), or its
            samples.json; a tar or a folder of tars (WebDataset: an image or video and a .cls or .json with the same
            name).
        kind: one of `FORMATS`. Default: detected from the file.
        root: the folder of the files that a list names. Default: the folder of the list.
        classes: names by index, from the training listing. Default: the sorted names in the source (numbers in
            numerical order).
        labels: whether labels are required. If so, lines without one are skipped, and one warning reports their
            number; otherwise every line is an item without labels. A video of Charades may have no class.

    Raises:
        ValueError: the source does not exist or cannot be read, no item has a required label, or a class is not in
            `classes`.
    """
    source = Path(source)
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    kind = kind or _guess(source)
    if kind not in FORMATS:
        raise ValueError(f"the format must be one of {', '.join(FORMATS)}, got {kind!r}")
    if kind == "fiftyone" and source.is_dir():
        source /= "samples.json"
    skipped: list[str] = []
    missing: list[str] = []
    base = Path(root) if root is not None else source.parent
    if kind == "folder":
        rows = list(_folder(source, skipped))
    elif kind == "webdataset":
        rows = list(read_tars(source, skipped))
    else:
        lookup = Lookup(base)
        rows = list(_located(READERS[kind](source, lookup, skipped), lookup, missing, skipped))
        warn_of_links(base, lookup.outside)
    if not rows:
        reason = f"none of the {len(missing)} listed files is under {base}; set the root folder" if missing else ""
        first = f"; {skipped[0]}" if skipped else ""
        raise ValueError(f"{source}: {reason or f'no labeled image or video found{first}'}")
    names: tuple[str, ...] = ()
    if labels:
        rows = _labeled(rows, source, skipped) if kind != "charades" else rows
        names = tuple(classes) if classes is not None else _class_names(rows, kind)
    index = {name: n for n, name in enumerate(names)}
    if labels and (unknown := sorted({label for row in rows for label in row.labels} - index.keys())):
        examples = ", ".join(map(repr, unknown[:5])) + (" ..." if len(unknown) > 5 else "")
        raise ValueError(f"{source}: has classes that are not among the {len(names)} training classes: {examples}")
    items = tuple(
        Item(
            row.path, tuple(index[name] for name in dict.fromkeys(row.labels)) if labels else (),
            row.start, row.end, row.member, row.offset, row.size,
        )
        for row in rows
    )  # fmt: skip
    multi_label = kind == "charades" or any(len(item.labels) > 1 for item in items)
    return Listing(items, names, multi_label, tuple(missing), tuple(skipped))


def _guess(source: Path) -> str:
    if source.name == "samples.json" or is_fiftyone(source):
        return "fiftyone"
    if source.is_dir():
        return "webdataset" if find_tars(source) else "folder"
    suffix = source.suffix.lower()
    if suffix in (".csv", ".tsv", ".txt"):
        columns = {name.lower() for name in read_header(source)}
        if "youtube_id" in columns:
            return "kinetics_csv"
        return "charades" if {"id", "actions"} <= columns else "csv" if {"path", "file_name"} & columns else "kinetics"
    by_suffix = {".jsonl": "jsonl", ".json": "avid", ".tar": "webdataset"}
    if suffix not in by_suffix:
        raise ValueError(f"{source}: unknown list format; expected a folder, .csv, .tsv, .jsonl, .json, .txt or .tar")
    return by_suffix[suffix]


def _labeled(rows: list[Row], source: Path, skipped: list[str]) -> list[Row]:
    """The rows that have a label; one warning reports the number of the others."""
    unlabeled = [row.where for row in rows if not row.labels]
    if not unlabeled:
        return rows
    lines = "1 line" if len(unlabeled) == 1 else f"{len(unlabeled)} lines"
    if len(unlabeled) == len(rows):
        raise ValueError(f"{source}: no labels in {lines}, the first is {unlabeled[0]}; at least one is required")
    warnings.warn(f"{source}: skipped {lines} without a label, the first is {unlabeled[0]}", stacklevel=3)
    skipped += [f"{where}: no label" for where in unlabeled]
    return [row for row in rows if row.labels]


def _class_names(rows: Sequence[Row], kind: str) -> tuple[str, ...]:
    if kind == "charades":
        return tuple(f"c{n:03d}" for n in range(157))
    # Numeric labels are class indices; folder names are always names.
    numbers = class_names(rows) if kind != "folder" else None
    return numbers or tuple(sorted({label for row in rows for label in row.labels}, key=natural))


def _folder(source: Path, skipped: list[str]) -> Iterator[Row]:
    """The files in each subfolder of `source`, at any depth; the name of the subfolder is their class."""
    by_class: dict[str, list[Path]] = defaultdict(list)
    for folder, names in walk(source, skipped):
        parts = Path(folder).relative_to(source).parts
        if parts:
            by_class[parts[0]] += [
                Path(folder, name) for name in names if is_image(Path(name)) or Path(name).suffix.lower() in VIDEOS
            ]
    for label in sorted(by_class, key=natural):
        for path in sorted(by_class[label], key=lambda path: (natural(path.name), str(path))):
            yield Row(str(path), str(path), (label,))


def _located(rows: Iterable[Row], lookup: Lookup, missing: list[str], skipped: list[str]) -> Iterator[Row]:
    """The rows whose file exists, with its path; names outside the folder raise an error."""
    for row in rows:
        path = lookup.find(row.path)
        if path is None:
            missing.append(row.path)
        elif is_image(path) and path.is_dir():
            skipped.append(f"{row.where}: {row.path!r} is a folder, not an image")
        else:
            yield replace(row, path=str(path))
