"""What there is to learn from: files and their classes, out of folders, lists, annotation files and tars."""

from __future__ import annotations

import random
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fewtokens.core.files import read_header
from fewtokens.data.folders import Lookup, natural, walk, warn_of_links
from fewtokens.data.lists import READERS, VIDEOS, Row, class_names
from fewtokens.data.tars import find_tars, read_tars
from fewtokens.video.images import is_image

FORMATS = ("folder", "csv", "jsonl", "kinetics", "kinetics_csv", "charades", "avid", "webdataset")


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
        left_out: lines, members or links that are no item, with the reason.
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


def read_listing(
    source: str | Path,
    *,
    kind: str | None = None,
    root: str | Path | None = None,
    classes: Sequence[str] | None = None,
    labels: bool = True,
) -> Listing:
    """Reads labelled files.

    Args:
        source: a folder with one folder for each class; a .csv, .tsv or .jsonl with path and label (and start, end in
            seconds), separated by commas, semicolons or tabs; a .txt with "path label", "path,label" or "path frames
            label" a line (Kinetics, mmaction); Kinetics' own .csv (label, youtube_id, time_start, time_end); Charades'
            .csv; AViD's .json; a tar or a folder of tars (WebDataset: members with the same name and .cls or .json
            beside the image or video).
        kind: one of `FORMATS`; found from the file by default.
        root: where the files of a list lie; the folder of the list by default.
        classes: names by number, from the listing that was trained on; otherwise those found, sorted (numbers by
            number).
        labels: whether labels are needed. Lines without one are then left out, with one warning that counts them;
            otherwise every line is an item without labels. A video of Charades may have no class.

    Raises:
        ValueError: nothing there, a format that cannot be read, no label where they are needed, a class that is not
            among `classes`.
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
        rows = list(_folder(source, left_out))
    elif kind == "webdataset":
        rows = list(read_tars(source, left_out))
    else:
        lookup = Lookup(base)
        rows = list(_located(READERS[kind](source, lookup, left_out), lookup, missing, left_out))
        warn_of_links(base, lookup.outward)
    if not rows:
        many = f"none of the {len(missing)} files that it names is under {base}; say where they are" if missing else ""
        first = f"; {left_out[0]}" if left_out else ""
        raise ValueError(f"{source}: {many or f'no labelled image or video found{first}'}")
    known: tuple[str, ...] = ()
    if labels:
        rows = _labelled(rows, source, left_out) if kind != "charades" else rows
        known = tuple(classes) if classes is not None else _class_names(rows, kind)
    number = {name: n for n, name in enumerate(known)}
    if labels and (strange := sorted({label for row in rows for label in row.labels} - number.keys())):
        some = ", ".join(map(repr, strange[:5])) + (" ..." if len(strange) > 5 else "")
        raise ValueError(f"{source}: has classes that were not trained on: {some}; known are {len(known)} others")
    items = tuple(
        Item(
            row.path, tuple(number[name] for name in dict.fromkeys(row.labels)) if labels else (),
            row.start, row.end, row.member, row.offset, row.size,
        )
        for row in rows
    )  # fmt: skip
    multi_label = kind == "charades" or any(len(item.labels) > 1 for item in items)
    return Listing(items, known, multi_label, tuple(missing), tuple(left_out))


def _guess(source: Path) -> str:
    if source.is_dir():
        return "webdataset" if find_tars(source) else "folder"
    suffix = source.suffix.lower()
    if suffix in (".csv", ".tsv", ".txt"):
        head = {name.lower() for name in read_header(source)}
        if "youtube_id" in head:
            return "kinetics_csv"
        return "charades" if {"id", "actions"} <= head else "csv" if "path" in head else "kinetics"
    by_suffix = {".jsonl": "jsonl", ".json": "avid", ".tar": "webdataset"}
    if suffix not in by_suffix:
        raise ValueError(f"{source}: not a known list; give a folder, .csv, .tsv, .jsonl, .json, .txt or .tar")
    return by_suffix[suffix]


def _labelled(rows: list[Row], source: Path, left_out: list[str]) -> list[Row]:
    """The rows that have a label; one warning counts the others."""
    bare = [row.where for row in rows if not row.labels]
    if not bare:
        return rows
    what = f"{source}: {'1 line has' if len(bare) == 1 else f'{len(bare)} lines have'} no label"
    if len(bare) == len(rows):
        raise ValueError(f"{what}, the first is {bare[0]}, and no line has one")
    warnings.warn(f"{what} and {'is' if len(bare) == 1 else 'are'} left out, the first is {bare[0]}", stacklevel=3)
    left_out += [f"{where}: no label" for where in bare]
    return [row for row in rows if row.labels]


def _class_names(rows: Sequence[Row], kind: str) -> tuple[str, ...]:
    if kind == "charades":
        return tuple(f"c{n:03d}" for n in range(157))
    # Numbers are the classes themselves; the names of folders are names.
    numbers = class_names(rows) if kind != "folder" else None
    return numbers or tuple(sorted({label for row in rows for label in row.labels}, key=natural))


def _folder(source: Path, left_out: list[str]) -> Iterator[Row]:
    """The files of each folder in `source`, which is their class, at any depth."""
    by_class: dict[str, list[Path]] = defaultdict(list)
    for folder, names in walk(source, left_out):
        inside = Path(folder).relative_to(source).parts
        if inside:
            by_class[inside[0]] += [
                Path(folder, name) for name in names if is_image(Path(name)) or Path(name).suffix.lower() in VIDEOS
            ]
    for label in sorted(by_class, key=natural):
        for path in sorted(by_class[label], key=lambda path: (natural(path.name), str(path))):
            yield Row(str(path), str(path), (label,))


def _located(rows: Iterable[Row], lookup: Lookup, missing: list[str], left_out: list[str]) -> Iterator[Row]:
    """The rows whose file is there; a name that leads out of the folder is refused."""
    for row in rows:
        path = lookup.find(row.path)
        if path is None:
            missing.append(row.path)
        elif is_image(path) and path.is_dir():
            left_out.append(f"{row.where}: {row.path!r} is a folder, not an image")
        else:
            yield replace(row, path=str(path))
