"""Frames decoded ahead: each video as one .npy of bytes that training maps into memory."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from fewtokens.data.footage import Footage, read_frames
from fewtokens.data.listing import VIDEOS
from fewtokens.files import whole_file
from fewtokens.video import stream


@dataclass(frozen=True)
class Packed:
    """What was written.

    Attributes:
        files: all, those of before too.
        frames: written now.
        broken: videos that could not be read, with the reason.
    """

    files: tuple[Path, ...]
    frames: int
    broken: tuple[str, ...]


def pack_frames(
    items: Sequence[Footage], out: str | Path, *, short: int, progress: Callable[[int, int], None] | None = None
) -> Packed:
    """Decodes videos into a folder that `find_footage` reads; those that are there already are left as they are.

    Args:
        items: the videos.
        out: the folder, made if needed; a .npy for each video.
        short: side in pixels to which the short side is scaled; 0 leaves frames as they are.
        progress: called with (videos done, videos in all).

    Raises:
        ValueError: none of them can be read.
    """
    files, broken, frames = [], [], 0
    for done, item in enumerate(items, start=1):
        path = Path(out) / _file_name(item)
        if not path.exists():
            try:
                frames += write_frames(path, _chunks(item, short))
            except (ValueError, OSError) as error:
                broken.append(f"{item.name}: {' '.join(str(error).split())}"[:500])
        if path.exists():
            files.append(path)
        if progress is not None:
            progress(done, len(items))
    if not files:
        raise ValueError(f"none of {len(items)} videos can be read; the first: {broken[0]}")
    return Packed(tuple(files), frames, tuple(broken))


def write_frames(path: str | Path, chunks: Iterable[Tensor]) -> int:
    """Writes frames, uint8 [n,3,H,W] in pieces, as one .npy [T,H,W,3]; in memory of one piece. Gives their number.

    Raises:
        ValueError: no frame.
    """
    count = 0
    with whole_file(path) as temporary, temporary.open("wb") as file:
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


def _file_name(item: Footage) -> str:
    """A name of its own in one folder, whatever the video is called."""
    stem = re.sub(r"[^\w-]+", "_", Path(item.name).stem)[:60]
    told = f"{item.name} {item.start} {item.end}"
    return f"{stem}-{hashlib.sha256(told.encode()).hexdigest()[:10]}.npy"
