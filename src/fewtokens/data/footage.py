"""Unlabeled videos from files, folders of images, WebDataset tars and pre-decoded frames."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewtokens.core.files import one_line
from fewtokens.data.folders import natural, walk
from fewtokens.data.images import read_image
from fewtokens.data.listing import read_listing
from fewtokens.data.lists import VIDEOS, is_fiftyone
from fewtokens.data.tars import copy_member, find_tars, list_members, read_member
from fewtokens.data.transforms import resize, scaled_size
from fewtokens.encoders.frames import to_unit
from fewtokens.video import VideoError, read
from fewtokens.video.decode import DEFAULT_FPS
from fewtokens.video.images import is_image
from fewtokens.video.select import select_frames

# Maps the number of frames to the indices of the frames to read.
Choose = Callable[[int], list[int]]


@dataclass(frozen=True)
class Footage:
    """One video.

    Attributes:
        path: a video file; a folder of images, its frames in order of their names; a .npy of frames (uint8 [T,H,W,3]);
            or the tar that contains it.
        start, end: the part of a video file that is used, in seconds; None for no limit.
        members: (name, offset, size) in bytes inside a tar: one video, or images.
    """

    path: str
    start: float | None = None
    end: float | None = None
    members: tuple[tuple[str, int, int], ...] = ()

    @property
    def name(self) -> str:
        """The name in reports."""
        return self.path if not self.members else f"{self.path}::{self.members[0][0]}"


@dataclass(frozen=True)
class Collection:
    """The videos of a source.

    Attributes:
        items: the videos, in a fixed order.
        missing: files that a list names but that do not exist.
        skipped: skipped lines of a list and skipped links of a folder, with the reason.
    """

    items: tuple[Footage, ...]
    missing: tuple[str, ...] = ()
    skipped: tuple[str, ...] = field(default=())


def find_footage(source: str | Path, *, root: str | Path | None = None) -> Collection:
    """Finds videos; labels, if any, are ignored.

    Args:
        source: a folder, searched at any depth (the Kinetics layout or any other) for videos, .npy files and folders
            of images, each of which is a video; a LeRobot dataset, each episode of each camera of which is a video;
            a folder that FiftyOne exported (FiftyOneDataset);
            a tar or a folder of tars; or any list that `read_listing` reads, with or without labels, including a .txt
            with one path per line. Pickled lists are refused, because a pickle can run any code.
        root: the folder of the files that a list names. Default: the folder of the list.

    Raises:
        ValueError: the source does not exist, contains no video, or lists a file outside `root`.
    """
    from fewtokens.data.lerobot import is_lerobot, open_dataset  # which is built on this module

    source = Path(source)
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    missing: list[str] = []
    skipped: list[str] = []
    if source.suffix.lower() in (".pickle", ".pkl"):
        raise ValueError(f"{source}: a pickle can run any code and is not read; write its paths to a .txt")
    if is_lerobot(source):
        items = list(open_dataset(source).footage().values())
    elif source.is_dir() and (tars := find_tars(source)):
        items = [item for tar in tars for item in _in_tar(tar)]
    elif source.is_dir() and not is_fiftyone(source):
        items = list(_in_folder(source, skipped))
    elif source.suffix.lower() == ".tar":
        items = list(_in_tar(source))
    elif source.suffix == ".npy" or source.suffix.lower() in VIDEOS:
        items = [Footage(str(source))]
    else:
        listing = read_listing(source, root=root, labels=False)
        missing, skipped = list(listing.missing), list(listing.skipped)
        items = [Footage(item.path, item.start, item.end) for item in listing.items]
    if not items:
        reason = f"none of the {len(missing)} listed files exists" if missing else "no video, .npy or image found"
        raise ValueError(f"{source}: {reason}; expected a folder of videos, image folders or tars, or a list")
    return Collection(tuple(items), tuple(missing), tuple(skipped))


def find_images(source: str | Path) -> Collection:
    """Finds images, each of which is a video of one frame.

    Args:
        source: an image, or a folder, searched at any depth.

    Raises:
        ValueError: the source does not exist, or contains no image.
    """
    source = Path(source)
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    skipped: list[str] = []
    paths = [source]
    if source.is_dir():
        paths = [
            Path(folder, name) for folder, files in walk(source, skipped) for name in sorted(files, key=_natural_key)
        ]
    items = [Footage(str(path)) for path in paths if is_image(path)]
    if not items:
        raise ValueError(f"{source}: no image found")
    return Collection(tuple(items), skipped=tuple(skipped))


def _in_folder(source: Path, skipped: list[str]) -> Iterator[Footage]:
    for folder, files in walk(source, skipped):
        names = sorted(files, key=_natural_key)
        for name in names:
            if Path(name).suffix.lower() in VIDEOS or name.endswith(".npy"):
                yield Footage(str(Path(folder, name)))
        if any(is_image(Path(name)) for name in names):
            yield Footage(folder)


def _in_tar(path: Path) -> Iterator[Footage]:
    """The videos of a tar, then its images, grouped into videos.

    Images named like clip7.0001.jpg are grouped by the part before the first dot, others by folder.
    """
    images: dict[str, list[tuple[str, int, int]]] = {}
    videos: list[Footage] = []
    for member in list_members(path):
        if Path(member.name).name.startswith("."):
            continue
        entry = (member.name, member.offset, member.size)
        if Path(member.name).suffix.lower() in VIDEOS:
            videos.append(Footage(str(path), members=(entry,)))
        elif is_image(Path(member.name)):
            folder, _, name = member.name.rpartition("/")
            key, _, rest = name.partition(".")
            images.setdefault(f"{folder}/{key}" if rest.count(".") else folder, []).append(entry)
    yield from videos
    for key in sorted(images):
        yield Footage(str(path), members=tuple(sorted(images[key], key=lambda entry: _natural_key(entry[0]))))


def _natural_key(name: str) -> list[tuple[int, str]]:
    return natural(name.lower())


def read_frames(item: Footage, choose: Choose, *, short: int = 0) -> Tensor:
    """Reads selected frames of a video.

    Args:
        item: the video.
        choose: maps the number of frames to the indices of the frames to read, in any order; repeats are allowed.
        short: length in pixels to which the short side is resized; 0 keeps the original size.

    Returns:
        uint8 [n,3,H,W].

    Raises:
        ValueError: the file cannot be read, or `choose` raises one; one line.
    """
    path = Path(item.path)
    if item.members:
        return _from_tar(item, choose, short)
    if path.suffix == ".npy":
        frames = open_frames(path)
        if item.start or item.end is not None:
            raise VideoError(f"{path}: has no times, so a part in seconds is not known; leave out start and end")
        selection = torch.from_numpy(np.stack([frames[n] for n in choose(len(frames))])).permute(0, 3, 1, 2)
        return resize_short(selection, short)
    if path.is_dir():
        files = list_images(path)
        times = np.arange(len(files)) / DEFAULT_FPS
        span = select_frames(times, None, None, item.start or 0.0, item.end, str(path))
        return _stack([read(files[n]).frames[0] for n in span[choose(len(span))]], short)
    return _from_video(path, item, choose, short)


def list_images(folder: Path) -> list[Path]:
    """The images of a folder in natural order, 2 before 10.

    Raises:
        ValueError: the folder has no images.
    """
    files = [file for file in folder.iterdir() if is_image(file) and file.name[0] != "." and file.is_file()]
    if not files:
        raise VideoError(f"{folder}: the folder has no images")
    return sorted(files, key=lambda file: _natural_key(file.name))


def describe_error(name: str, error: Exception) -> str:
    """Formats the error of an item as one line that begins with its name."""
    return f"{name}: {' '.join(str(error).split()).removeprefix(f'{name}: ')}"[:500]


def open_frames(path: Path) -> NDArray[np.uint8]:
    """Memory-maps the frames of a .npy, uint8 [T,H,W,3].

    Raises:
        ValueError: the file is not such an array.
    """
    try:
        frames = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy parses the header as Python, which can raise any error
        raise ValueError(f"{path}: not an array that can be memory-mapped ({one_line(error)})") from None
    if not isinstance(frames, np.ndarray):
        raise ValueError(f"{path}: must be an array, got an archive")
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(f"{path}: frames must be uint8 [T,H,W,3], got {frames.dtype} {list(frames.shape)}")
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
        return resize_short(read(path).frames[choose(1)], short)
    return read(path, pick=pick, size=short or None).frames


def _from_tar(item: Footage, choose: Choose, short: int) -> Tensor:
    if not is_image(Path(item.members[0][0])):
        ((name, offset, size),) = item.members
        with tempfile.NamedTemporaryFile(suffix=Path(name).suffix) as file:
            copy_member(item.path, offset, size, file)
            return _from_video(Path(file.name), item, choose, short)
    members = [item.members[n] for n in choose(len(item.members))]
    images = [read_image(read_member(item.path, offset, size), name) for name, offset, size in members]
    return _stack(images, short)


def _stack(images: list[Tensor], short: int) -> Tensor:
    if (sizes := len({image.shape for image in images})) != 1:
        raise VideoError(f"the frames of a video must have the same size, got images of {sizes} sizes")
    return resize_short(torch.stack(images), short)


def resize_short(frames: Tensor, short: int) -> Tensor:
    """Resizes uint8 frames [n,3,H,W] to a length of the short side in pixels; 0 keeps their size."""
    if not short or min(frames.shape[-2:]) == short:
        return frames
    size = scaled_size(frames.shape[-2], frames.shape[-1], short)
    return (resize(to_unit(frames), size).clamp(0, 1) * 255).round().byte()
