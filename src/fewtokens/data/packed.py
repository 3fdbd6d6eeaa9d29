"""Frames decoded ahead: each video as one .npy of bytes that training maps into memory."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from torch import Tensor

from fewtokens.core import files
from fewtokens.core.identity import identity
from fewtokens.data.footage import Footage, open_frames, read_frames
from fewtokens.data.listing import VIDEOS
from fewtokens.video import stream

# Beside the frames: a line for each .npy, of what it was made.
INDEX = "frames.jsonl"


class Entry(TypedDict):
    """A line of `INDEX`."""

    file: str
    source: str
    identity: str
    short: int


@dataclass(frozen=True)
class Packed:
    """What was written.

    Attributes:
        files: all, those of before too.
        frames: written now.
        broken: videos that could not be read, with the reason.
        trusted: files of an older version, which did not note what they were made of; they are of this size.
    """

    files: tuple[Path, ...]
    frames: int
    broken: tuple[str, ...]
    trusted: int = 0


def pack_frames(
    items: Sequence[Footage],
    out: str | Path,
    *,
    short: int,
    fresh: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Packed:
    """Decodes videos into a folder that `find_footage` reads; those that are there already are left as they are.

    Args:
        items: the videos.
        out: the folder, made if needed; a .npy for each video, and `INDEX`.
        short: side in pixels to which the short side is scaled; 0 leaves frames as they are.
        fresh: decode all of them again.
        progress: called with (videos done, videos in all).

    Raises:
        ValueError: the folder holds frames of another size, or of a video that has changed; nothing is written then.
            Or none of the videos can be read.
        OSError: the disk is full; what was written stays and is not done again.
    """
    out = Path(out)
    wanted = {_file_name(item): item for item in items}  # a video that is listed twice is decoded once
    entries = {name: _entry(name, item, short) for name, item in wanted.items()}
    noted: dict[str, Entry] = {entry["file"]: entry for entry in files.read_rows(out / INDEX, Entry)}
    for name, entry in noted.items():
        if not (fresh and name in wanted):
            _check(entry, entries.get(name, entry), short, out)
    # Without an index the folder is of an older version; beside one, frames without a line are what a kill left.
    trusted = [] if fresh or (out / INDEX).exists() else _of_older_version(wanted, short, out)
    kept = {*trusted, *(name for name in wanted if name in noted and not fresh and (out / name).exists())}
    made, broken, frames = [], [], 0
    out.mkdir(parents=True, exist_ok=True)
    if fresh or not (out / INDEX).exists():
        others = [entry for name, entry in noted.items() if name not in wanted]
        files.write_rows(out / INDEX, [*others, *(entries[name] for name in trusted)])
    for done, (name, item) in enumerate(wanted.items(), start=1):
        path = out / name
        try:
            if name not in kept:
                frames += write_frames(path, _chunks(item, short))
                files.add_row(out / INDEX, entries[name])
            made.append(path)
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno in files.NO_ROOM:
                raise
            broken.append(f"{item.name}: {' '.join(str(error).split())}"[:500])
        if progress is not None:
            progress(done, len(wanted))
    if not made:
        raise ValueError(f"none of {len(items)} videos can be read; the first: {broken[0]}")
    return Packed(tuple(made), frames, tuple(broken), len(trusted))


def _entry(name: str, item: Footage, short: int) -> Entry:
    made = identity([item.path], [f"{item.start} {item.end} {item.members}"])
    return {"file": name, "source": item.name, "identity": made, "short": short}


def _check(there: Entry, here: Entry, short: int, out: Path) -> None:
    says = f"{out / there['file']}: holds frames of {there['source']}"
    if there["short"] != short:
        says += f" with a short side of {there['short']} pixels, {short} are asked for"
    elif there["identity"] != here["identity"]:
        says += ", which has changed since"
    else:
        return
    raise ValueError(f"{says}; take another --out, or --fresh")


def _of_older_version(wanted: dict[str, Footage], short: int, out: Path) -> list[str]:
    """The names of what an older version wrote, where it has this size. It named files after paths as given."""
    there = {name: path for name, item in wanted.items() if (path := out / _file_name(item, item.name)).exists()}
    for path in there.values():
        side = min(open_frames(path).shape[1:3])
        if short not in (0, side):
            raise ValueError(
                f"{path}: holds frames with a short side of {side} pixels, {short} are asked for; take another --out, "
                "or --fresh"
            )
    for name, path in there.items():
        path.rename(out / name)
    return list(there)


def write_frames(path: str | Path, chunks: Iterable[Tensor]) -> int:
    """Writes frames, uint8 [n,3,H,W] in pieces, as one .npy [T,H,W,3]; in memory of one piece. Gives their number.

    Raises:
        ValueError: no frame.
    """
    count = 0
    with files.whole_file(path) as temporary, temporary.open("wb") as file:
        for chunk in chunks:
            pixels = np.ascontiguousarray(chunk.permute(0, 2, 3, 1).numpy())
            if not count:
                shape = pixels.shape[1:]
                _header(file, (0, *shape))
            assert pixels.shape[1:] == shape
            file.write(pixels.tobytes())
            count += len(pixels)
        if not count:
            raise ValueError(f"{path}: there is no frame to write")
        # The header has room for the number of frames, which is known only now.
        file.seek(0)
        _header(file, (count, *shape))
    return count


def _header(file: object, shape: tuple[int, ...]) -> None:
    entry = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, entry)  # type: ignore[arg-type]


def _chunks(item: Footage, short: int) -> Iterator[Tensor]:
    path = Path(item.path)
    if path.suffix.lower() in VIDEOS and not item.members:
        for video in stream(path, chunk=64, size=short or None, start=item.start or 0.0, end=item.end):
            yield video.frames
        return
    yield read_frames(item, lambda count: list(range(count)), short=short)


def _file_name(item: Footage, called: str | None = None) -> str:
    """A name of its own in one folder, whatever the video is called, and however its path is given."""
    if called is None:
        called = item.name.replace(item.path, os.path.abspath(item.path), 1)
    stem = re.sub(r"[^\w-]+", "_", Path(item.name).stem)[:60]
    told = f"{called} {item.start} {item.end}"
    return f"{stem}-{hashlib.sha256(told.encode(errors='surrogateescape')).hexdigest()[:10]}.npy"
