"""Pre-decoded frames: one uint8 .npy per video, which training memory-maps."""

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

# The index file of a folder of frames, with one line per .npy that describes its source.
INDEX = "frames.jsonl"


class Entry(TypedDict):
    """A line of `INDEX`."""

    file: str
    source: str
    identity: str
    short: int


@dataclass(frozen=True)
class Packed:
    """The result of `pack_frames`.

    Attributes:
        files: all files, including existing ones.
        frames: the number of frames written by this call.
        broken: videos that could not be read, with the reason.
        unverified: the number of existing files of an older version, which recorded no source; only their size is
            checked.
    """

    files: tuple[Path, ...]
    frames: int
    broken: tuple[str, ...]
    unverified: int = 0


def pack_frames(
    items: Sequence[Footage],
    out: str | Path,
    *,
    short: int,
    fresh: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Packed:
    """Decodes videos into a folder that `find_footage` reads; existing files are skipped.

    Args:
        items: the videos.
        out: the folder, created if needed; gets one .npy per video and `INDEX`.
        short: length in pixels to which the short side is resized; 0 keeps the original size.
        fresh: decode all videos again.
        progress: called with (number of videos done, number of videos).

    Raises:
        ValueError: the folder contains frames of another size or of a video that has changed, in which case nothing
            is written; or none of the videos can be read.
        OSError: the disk is full; files that are complete remain and are skipped by the next call.
    """
    out = Path(out)
    videos = {file_name(item): item for item in items}  # a video that is listed twice is decoded once
    entries = {name: _entry(name, item, short) for name, item in videos.items()}
    index: dict[str, Entry] = {entry["file"]: entry for entry in files.read_rows(out / INDEX, Entry)}
    for name, entry in index.items():
        if not (fresh and name in videos):
            _check(entry, entries.get(name, entry), short, out)
    # A folder without an index is from an older version. In one with an index, files without a line are incomplete.
    trusted = [] if fresh or (out / INDEX).exists() else _adopt_older_version(videos, short, out)
    existing = {*trusted, *(name for name in videos if name in index and not fresh and (out / name).exists())}
    paths, broken, frames = [], [], 0
    out.mkdir(parents=True, exist_ok=True)
    if fresh or not (out / INDEX).exists():
        others = [entry for name, entry in index.items() if name not in videos]
        files.write_rows(out / INDEX, [*others, *(entries[name] for name in trusted)])
    for done, (name, item) in enumerate(videos.items(), start=1):
        path = out / name
        try:
            if name not in existing:
                frames += write_frames(path, read_chunks(item, short))
                files.append_row(out / INDEX, entries[name])
            paths.append(path)
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno in files.DISK_FULL_ERRORS:
                raise
            broken.append(f"{item.name}: {' '.join(str(error).split())}"[:500])
        if progress is not None:
            progress(done, len(videos))
    if not paths:
        raise ValueError(f"none of {len(items)} videos can be read; the first: {broken[0]}")
    return Packed(tuple(paths), frames, tuple(broken), len(trusted))


def _entry(name: str, item: Footage, short: int) -> Entry:
    digest = identity([item.path], [f"{item.start} {item.end} {item.members}"])
    return {"file": name, "source": item.name, "identity": digest, "short": short}


def _check(existing: Entry, requested: Entry, short: int, out: Path) -> None:
    message = f"{out / existing['file']}: contains frames of {existing['source']}"
    if existing["short"] != short:
        message += f" with a short side of {existing['short']} pixels, {short} requested"
    elif existing["identity"] != requested["identity"]:
        message += ", which has changed since"
    else:
        return
    raise ValueError(f"{message}; use another --out, or --fresh")


def _adopt_older_version(videos: dict[str, Footage], short: int, out: Path) -> list[str]:
    """Checks the size of the files of an older version, gives them their current names and returns these.

    The older version derived names from relative paths.
    """
    existing = {name: path for name, item in videos.items() if (path := out / file_name(item, item.name)).exists()}
    for path in existing.values():
        side = min(open_frames(path).shape[1:3])
        if short not in (0, side):
            raise ValueError(
                f"{path}: contains frames with a short side of {side} pixels, {short} requested; use another --out, "
                "or --fresh"
            )
    for name, path in existing.items():
        path.rename(out / name)
    return list(existing)


def write_frames(path: str | Path, chunks: Iterable[Tensor]) -> int:
    """Writes chunks of frames, uint8 [n,3,H,W], to one .npy [T,H,W,3] with one chunk in memory at a time.

    Returns:
        the number of frames.

    Raises:
        ValueError: there are no frames.
    """
    count = 0
    with files.atomic_file(path) as temporary, temporary.open("wb") as file:
        for chunk in chunks:
            pixels = np.ascontiguousarray(chunk.permute(0, 2, 3, 1).numpy())
            if not count:
                shape = pixels.shape[1:]
                _header(file, (0, *shape))
            assert pixels.shape[1:] == shape
            file.write(pixels.tobytes())
            count += len(pixels)
        if not count:
            raise ValueError(f"{path}: no frames to write")
        # The number of frames is known only now; the padding of the header leaves room for it.
        file.seek(0)
        _header(file, (count, *shape))
    return count


def _header(file: object, shape: tuple[int, ...]) -> None:
    entry = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, entry)  # type: ignore[arg-type]


def read_chunks(item: Footage, short: int) -> Iterator[Tensor]:
    """Yields the frames of a video, uint8 [n,3,H,W], resized to `short` pixels on the short side (0: as they are)."""
    path = Path(item.path)
    if path.suffix.lower() in VIDEOS and not item.members:
        for video in stream(path, chunk=64, size=short or None, start=item.start or 0.0, end=item.end):
            yield video.frames
        return
    yield read_frames(item, lambda count: list(range(count)), short=short)


def file_name(item: Footage, name: str | None = None) -> str:
    """Returns a unique name of the file of a video, the same for its relative and its absolute path.

    Args:
        item: the video.
        name: of the video. Default: `item.name` with the absolute path.
    """
    if name is None:
        name = item.name.replace(item.path, os.path.abspath(item.path), 1)
    stem = re.sub(r"[^\w-]+", "_", Path(item.name).stem)[:60]
    key = f"{name} {item.start} {item.end}"
    return f"{stem}-{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()[:10]}.npy"
