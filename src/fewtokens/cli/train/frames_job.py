"""The work of `fewtokens train frames` as a job, see `fewtokens.jobs`; the files are those of the plain command."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from fewtokens.data.footage import Footage
    from fewtokens.jobs import Format, Record


class _Frames(NamedTuple):
    """The frames of a video, with what a job asks of a result."""

    chunks: list[Tensor]
    meta: Mapping[str, Any]

    @property
    def numbers(self) -> dict[str, int]:
        return {"frames": sum(map(len, self.chunks))}


@dataclass(frozen=True)
class FramesWork:
    """What `train frames` does with each video, a `fewtokens.jobs.Work`.

    Attributes:
        short: length in pixels to which the short side is resized; 0 keeps the original size.
    """

    short: int

    def settings(self) -> dict[str, Any]:
        """Returns the settings of the job; see `fewtokens.jobs.run_job`."""
        return {"format": "frames", "short": self.short}

    def read(self, location: str, check: Callable[..., None]) -> _Frames:
        """Decodes a video; see `fewtokens.jobs.Work`."""
        from fewtokens.core.identity import describe_source
        from fewtokens.data.packed import read_chunks

        item = find(location)
        chunks = []
        for chunk in read_chunks(item, self.short):
            check()
            chunks.append(chunk)
        return _Frames(chunks, {"source": describe_source(item.path)})

    def load(self) -> _Pass:
        """Nothing is loaded; see `fewtokens.jobs.Work`."""
        return _Pass()


class _Pass:
    """Passes frames on, a `fewtokens.jobs.Reduce`: decoding is all the work."""

    def batches(self, videos: Iterable[_Frames]) -> Iterator[list[_Frames]]:
        return ([video] for video in videos)

    def __call__(self, videos: Sequence[_Frames]) -> list[_Frames]:
        return list(videos)


def location_of(item: Footage) -> str:
    """Returns the location of a video as jobs write it: FILE, FILE#t=START,END in seconds, or TAR::MEMBER."""
    from fewtokens.jobs.sources import join_part

    return join_part(item.name.replace(item.path, os.path.abspath(item.path), 1), (item.start, item.end))


def find(location: str) -> Footage:
    """Returns the video at a location.

    Raises:
        ValueError: there is no such file, or the tar has no such video.
    """
    from fewtokens.data.footage import Footage
    from fewtokens.jobs.sources import split_part

    file, part = split_part(location)
    if os.path.exists(file):
        return Footage(file, *(part or (None, None)))
    tar, _, member = location.partition("::")
    if member and os.path.exists(tar) and (item := _members(tar).get(location)) is not None:
        return item
    raise ValueError(f"{location}: no such file")


@lru_cache(maxsize=2)
def _members(tar: str) -> dict[str, Footage]:
    from fewtokens.data.footage import find_footage

    return {item.name: item for item in find_footage(tar).items}


def frames_format() -> Format:
    """Returns the format of pre-decoded frames, one .npy per video."""
    from fewtokens.jobs import Format

    return Format("{key}.npy", _write, plain_keys=True)


def _write(path: Path, records: Iterable[Record], label: str) -> int:
    from fewtokens.data.packed import write_frames

    (record,) = records
    frames: Any = record.tokens
    write_frames(path, frames.chunks)
    return 1
