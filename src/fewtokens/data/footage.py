"""Videos without labels, wherever they lie: files, folders of pictures, WebDataset tars, frames decoded ahead."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewtokens.core.files import in_a_line
from fewtokens.data.folders import natural, walk
from fewtokens.data.listing import read_listing
from fewtokens.data.lists import VIDEOS
from fewtokens.data.pictures import read_picture
from fewtokens.data.tars import copy_member, find_tars, list_members, read_member
from fewtokens.data.transforms import resize, scaled
from fewtokens.encoders.frames import to_unit
from fewtokens.video import VideoError, read
from fewtokens.video.images import is_image

# From how many frames there are to the numbers of those wanted.
Choose = Callable[[int], list[int]]


@dataclass(frozen=True)
class Footage:
    """One video.

    Attributes:
        path: a video file; a folder of pictures, which are its frames by name; a .npy of frames (uint8 [T,H,W,3]);
            or the tar that holds it.
        start, end: seconds of the part that is meant, of a video file; None is the whole.
        members: (name, first byte, bytes) inside a tar: one video, or pictures.
    """

    path: str
    start: float | None = None
    end: float | None = None
    members: tuple[tuple[str, int, int], ...] = ()

    @property
    def name(self) -> str:
        """What to call it in a report."""
        return self.path if not self.members else f"{self.path}::{self.members[0][0]}"


@dataclass(frozen=True)
class Collection:
    """What was found.

    Attributes:
        items: the videos, in a fixed order.
        missing: files that a list names and that are not there.
        left_out: lines of a list that name nothing, links of a folder that are not followed.
    """

    items: tuple[Footage, ...]
    missing: tuple[str, ...] = ()
    left_out: tuple[str, ...] = field(default=())


def find_footage(source: str | Path, *, root: str | Path | None = None) -> Collection:
    """Finds videos; labels, where there are some, are not looked at.

    Args:
        source: a folder, looked through at any depth (Kinetics' layout or any other): its videos, its .npy files, and
            its folders of pictures, each of which is a video; a tar or a folder of tars; any list that `read_listing`
            knows, with labels or without, so also a .txt with a path on each line. A list that is a pickle is not
            read, for that can run any code.
        root: where the files of a list lie; the folder of the list by default.

    Raises:
        ValueError: nothing there, no video in it, a list that leads out of its root.
    """
    source = Path(source)
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    missing: list[str] = []
    left_out: list[str] = []
    if source.suffix.lower() in (".pickle", ".pkl"):
        raise ValueError(f"{source}: a pickle can run any code and is not read; write its paths into a .txt")
    if source.is_dir() and (tars := find_tars(source)):
        items = [item for tar in tars for item in _in_tar(tar)]
    elif source.is_dir():
        items = list(_in_folder(source, left_out))
    elif source.suffix == ".tar":
        items = list(_in_tar(source))
    elif source.suffix == ".npy" or source.suffix.lower() in VIDEOS:
        items = [Footage(str(source))]
    else:
        listing = read_listing(source, root=root, labels=False)
        missing, left_out = list(listing.missing), list(listing.left_out)
        items = [Footage(item.path, item.start, item.end) for item in listing.items]
    if not items:
        why = f"none of the {len(missing)} files it names is there" if missing else "no video, .npy or picture in it"
        raise ValueError(f"{source}: {why}; give a folder of videos, of folders of pictures, of tars, or a list")
    return Collection(tuple(items), tuple(missing), tuple(left_out))


def _in_folder(source: Path, left_out: list[str]) -> Iterator[Footage]:
    for folder, files in walk(source, left_out):
        seen = sorted(files, key=_by_name)
        for name in seen:
            if Path(name).suffix.lower() in VIDEOS or name.endswith(".npy"):
                yield Footage(str(Path(folder, name)))
        if any(is_image(Path(name)) for name in seen):
            yield Footage(folder)


def _in_tar(path: Path) -> Iterator[Footage]:
    """Videos; and pictures, those of one folder, or of names such as clip7.0001.jpg up to the first dot, together."""
    pictures: dict[str, list[tuple[str, int, int]]] = {}
    videos: list[Footage] = []
    for member in list_members(path):
        if Path(member.name).name.startswith("."):
            continue
        place = (member.name, member.offset, member.size)
        if Path(member.name).suffix.lower() in VIDEOS:
            videos.append(Footage(str(path), members=(place,)))
        elif is_image(Path(member.name)):
            folder, _, name = member.name.rpartition("/")
            key, _, rest = name.partition(".")
            pictures.setdefault(f"{folder}/{key}" if rest.count(".") else folder, []).append(place)
    yield from videos
    for key in sorted(pictures):
        yield Footage(str(path), members=tuple(sorted(pictures[key], key=lambda place: _by_name(place[0]))))


def _by_name(name: str) -> list[tuple[int, str]]:
    return natural(name.lower())


def read_frames(item: Footage, choose: Choose, *, short: int = 0) -> Tensor:
    """Some frames of a video.

    Args:
        item: the video.
        choose: given how many frames there are, the numbers of those wanted, in any order, repeats included.
        short: side in pixels to which the short side is scaled; 0 leaves frames as they are.

    Returns:
        uint8 [n,3,H,W].

    Raises:
        ValueError: a file that cannot be read, or what `choose` raises; one line.
    """
    path = Path(item.path)
    if item.members:
        return _from_tar(item, choose, short)
    if path.suffix == ".npy":
        frames = open_frames(path)
        wanted = torch.from_numpy(np.stack([frames[n] for n in choose(len(frames))])).permute(0, 3, 1, 2)
        return _scaled(wanted, short)
    if path.is_dir():
        files = list_pictures(path)
        return _of_one_size([read(files[n]).frames[0] for n in choose(len(files))], short)
    return _from_video(path, item, choose, short)


def list_pictures(folder: Path) -> list[Path]:
    """The images of a folder in natural order, 2 before 10.

    Raises:
        ValueError: there are none.
    """
    files = [file for file in folder.iterdir() if is_image(file) and file.name[0] != "." and file.is_file()]
    if not files:
        raise VideoError(f"{folder}: a folder without images")
    return sorted(files, key=lambda file: _by_name(file.name))


def told(name: str, error: Exception) -> str:
    """What is wrong with an item, in one line that begins with its name."""
    return f"{name}: {' '.join(str(error).split()).removeprefix(f'{name}: ')}"[:500]


def open_frames(path: Path) -> NDArray[np.uint8]:
    """The frames of a .npy, mapped and not read: uint8 [T,H,W,3].

    Raises:
        ValueError: another array, or none.
    """
    try:
        frames = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy reads a header as Python, and raises what that raises
        raise ValueError(f"{path}: not an array that can be mapped ({in_a_line(error)})") from None
    if not isinstance(frames, np.ndarray):
        raise ValueError(f"{path}: an archive, not an array")
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(f"{path}: frames are uint8 [T,H,W,3], this is {frames.dtype} {list(frames.shape)}")
    return frames


def _from_video(path: Path, item: Footage, choose: Choose, short: int) -> Tensor:
    def pick(times: NDArray[np.float64]) -> NDArray[np.int64]:
        span = np.flatnonzero(
            (times >= (item.start or 0.0) - 1e-9) & (times < (np.inf if item.end is None else item.end))
        )
        if not len(span):
            raise VideoError(f"has no frame between {item.start} s and {item.end} s")
        return span[choose(len(span))].astype(np.int64)

    if is_image(path):
        return _scaled(read(path).frames[choose(1)], short)
    return read(path, pick=pick, size=short or None).frames


def _from_tar(item: Footage, choose: Choose, short: int) -> Tensor:
    if not is_image(Path(item.members[0][0])):
        ((name, offset, size),) = item.members
        with tempfile.NamedTemporaryFile(suffix=Path(name).suffix) as file:
            copy_member(item.path, offset, size, file)
            return _from_video(Path(file.name), item, choose, short)
    chosen = [item.members[n] for n in choose(len(item.members))]
    pictures = [read_picture(read_member(item.path, place, size), name) for name, place, size in chosen]
    return _of_one_size(pictures, short)


def _of_one_size(pictures: list[Tensor], short: int) -> Tensor:
    if len({picture.shape for picture in pictures}) != 1:
        raise VideoError(f"has pictures of {len({picture.shape for picture in pictures})} sizes, so it is no video")
    return _scaled(torch.stack(pictures), short)


def _scaled(frames: Tensor, short: int) -> Tensor:
    if not short or min(frames.shape[-2:]) == short:
        return frames
    size = scaled(frames.shape[-2], frames.shape[-1], short)
    return (resize(to_unit(frames), size).clamp(0, 1) * 255).round().byte()
