"""Robot datasets in the layout of LeRobot, versions 2 and 3, as demonstrations and as footage.

A folder with meta/info.json, which has the rate, the features and the patterns of file names; actions and states in
Parquet; and cameras as MP4 or as images in Parquet. Version 2.0 and 2.1 have a file per episode, and
meta/episodes.jsonl. Version 3.0 has several episodes in a file, and meta/episodes/*/*.parquet, which says where each
begins: the frame of a row is shown at `from_timestamp` of its episode plus the `timestamp` of the row.

LeRobot refuses a frame that is more than 0.1 ms from its time. Here the nearest frame is read, up to half a frame away:
containers round times, and a concatenated file adds these errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewtokens.core.files import one_line, parse_json, read_json, read_lines
from fewtokens.core.plain import conform
from fewtokens.data.footage import Footage, resize_short
from fewtokens.data.images import read_image
from fewtokens.video import VideoError, read

ACTION, STATE, REWARD = "action", "observation.state", "next.reward"


class _Shape(TypedDict):
    dtype: str
    shape: list[int]


class _Feature(_Shape, total=False):
    """What info.json says about a column or a camera."""

    info: dict[str, Any] | None
    video_info: dict[str, Any] | None


class _Layout(TypedDict):
    codebase_version: str
    fps: float
    features: dict[str, _Feature]
    data_path: str


class _Info(_Layout, total=False):
    """The keys of info.json that are read; there are more."""

    video_path: str | None
    chunks_size: int


class _Length(TypedDict):
    episode_index: int
    length: int


class _Line(_Length, total=False):
    """The keys of an episode that are read; there are more."""

    tasks: list[str] | None


@dataclass(frozen=True)
class Episode:
    """One episode.

    Attributes:
        index: number of the episode.
        length: number of steps.
        tasks: instructions to the robot.
        table: the Parquet file with its rows, and maybe those of others.
        videos: for each camera with a video, the file and the time in it at which the episode begins, in seconds.
    """

    index: int
    length: int
    tasks: tuple[str, ...]
    table: Path
    videos: dict[str, tuple[Path, float]]


@dataclass(frozen=True)
class Dataset:
    """A dataset whose metadata have been read.

    Attributes:
        folder: the folder.
        version: 2 or 3.
        fps: steps per second.
        features: shape of each column and camera.
        cameras: names of the cameras in color, and whether their frames are images in Parquet.
        episodes: by index.
    """

    folder: Path
    version: int
    fps: float
    features: dict[str, tuple[int, ...]]
    cameras: dict[str, bool]
    episodes: tuple[Episode, ...]

    def find_camera(self, name: str | None = None) -> str:
        """Returns the camera with this name, or with this last part of a name: top for observation.images.top.

        Raises:
            ValueError: no camera or several have the name; or no name is given, and there are several cameras.
        """
        named = [camera for camera in self.cameras if name in (None, camera, camera.rpartition(".")[2])]
        if len(named) != 1:
            problem = "several cameras" if name is None else f"no single camera {name!r}"
            cameras = ", ".join(self.cameras) or "none"
            raise ValueError(f"{self.folder}: has {problem if self.cameras else 'no camera'}; choose one of: {cameras}")
        return named[0]

    def footage(self) -> dict[str, Footage]:
        """The video of each episode from each camera, by names such as observation.images.top/episode_000003.

        Raises:
            ValueError: the frames of all cameras are images in Parquet.
        """
        # Half a frame early, because the times of frames and the bounds of episodes are rounded.
        half = 0.5 / self.fps
        items = {
            f"{camera}/episode_{episode.index:06d}": Footage(str(path))
            if self.version == 2
            else Footage(str(path), max(start - half, 0.0), start + episode.length / self.fps - half)
            for camera in self.cameras
            for episode in self.episodes
            if camera in episode.videos
            for path, start in [episode.videos[camera]]
        }
        if not items:
            raise ValueError(f"{self.folder}: contains no videos (its frames, if any, are images in Parquet)")
        return items

    def files(self, count: int, camera: str) -> list[Path]:
        """The files that determine the first `count` demonstrations."""
        episodes = self.episodes[:count]
        videos = [episode.videos[camera][0] for episode in episodes if camera in episode.videos]
        return list(
            dict.fromkeys([self.folder / "meta" / "info.json", *(episode.table for episode in episodes), *videos])
        )


def is_lerobot(folder: str | Path) -> bool:
    """Whether this is a folder with a meta/info.json."""
    return Path(folder, "meta", "info.json").is_file()


def open_dataset(folder: str | Path) -> Dataset:
    """Reads the metadata of a dataset.

    Raises:
        ValueError: not a dataset of version 2 or 3, damaged, or a name that leads out of the folder; or version 3 and
            pyarrow is not installed.
    """
    folder = Path(folder)
    if not is_lerobot(folder):
        raise ValueError(f"{folder}: not a LeRobot dataset; it has no meta/info.json")
    where = str(folder / "meta" / "info.json")
    info: _Info = read_json(where, _Info)
    version = info["codebase_version"].lstrip("v").partition(".")[0]
    if version not in ("2", "3"):
        raise ValueError(f"{where}: version {info['codebase_version']!r} is not supported; convert it to v2.1 or v3.0")
    if info["fps"] <= 0 or info.get("chunks_size", 1) < 1:
        raise ValueError(f"{where}: fps and chunks_size must be positive")
    cameras = {
        name: feature["dtype"] == "image"
        for name, feature in info["features"].items()
        if feature["dtype"] in ("video", "image") and not _is_depth(feature)
    }
    features = {name: tuple(feature["shape"]) for name, feature in info["features"].items()}
    videos = [name for name, is_image in cameras.items() if not is_image]
    list_episodes = _episodes_2 if version == "2" else _episodes_3
    episodes = sorted(list_episodes(folder, info, videos), key=lambda episode: episode.index)
    if not episodes:
        raise ValueError(f"{folder}: contains no episodes")
    return Dataset(folder, int(version), float(info["fps"]), features, cameras, tuple(episodes))


def read_episodes(
    dataset: Dataset, count: int | None = None, *, camera: str | None = None, short: int = 0
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yields the first `count` episodes as arrays, one in memory at a time.

    Args:
        dataset: the dataset.
        count: number of episodes; None for all.
        camera: see `Dataset.find_camera`.
        short: frames with a longer short side are reduced to it, in pixels; 0 keeps their size.

    Yields:
        images uint8 [T,H,W,3], observations [T,S] (the state of the robot), actions [T,A] and rewards [T] (0 if there
        are none).

    Raises:
        ValueError: a feature is missing, a file is damaged, or a step has no frame.
    """
    camera = dataset.find_camera(camera)
    for name in (ACTION, STATE):
        if name not in dataset.features:
            raise ValueError(f"{dataset.folder}: has no feature {name!r}, only {', '.join(sorted(dataset.features))}")
    columns = [ACTION, STATE, *([REWARD] if REWARD in dataset.features else [])]
    # Of the two sides and the channels, the short side is never the smallest, in any order.
    side = min(short, sorted(dataset.features[camera])[-2]) if len(dataset.features[camera]) == 3 else short
    for episode in dataset.episodes[:count]:
        frames_in_table = [camera] if dataset.cameras[camera] else []
        table = _read_table(episode.table, ["timestamp", *columns, *frames_in_table], episode.index)
        if len(table) != episode.length or not len(table):
            raise ValueError(
                f"{episode.table}: episode {episode.index} has {len(table)} rows, {episode.length} expected"
            )
        values = {name: _values(table, name, dataset.features[name], episode) for name in columns}
        if frames_in_table:
            images = _decode(table.column(camera).to_pylist(), f"{episode.table}: {camera}", short)
        else:
            path, start = episode.videos[camera]
            times = start + _values(table, "timestamp", (1,), episode)[:, 0].astype(np.float64)
            images = _read_frames(path, times, dataset.fps, side)
        yield {
            "images": images.permute(0, 2, 3, 1).numpy(),
            "observations": values[STATE],
            "actions": values[ACTION],
            "rewards": values[REWARD].sum(1) if REWARD in values else np.zeros(len(table), np.float32),
        }


def _is_depth(feature: _Feature) -> bool:
    parts = [part for part in (feature.get("info"), feature.get("video_info")) if part]
    return any(part.get(name) for part in parts for name in ("is_depth_map", "video.is_depth_map"))


def _episodes_2(folder: Path, info: _Info, cameras: Sequence[str]) -> Iterator[Episode]:
    path = folder / "meta" / "episodes.jsonl"
    for number, text in read_lines(path):
        line: _Line = conform(parse_json(text, f"{path}: line {number}"), _Line, f"{path}: line {number}")
        index = line["episode_index"]
        names: dict[str, Any] = {"episode_index": index, "episode_chunk": index // info.get("chunks_size", 1000)}
        table = _fill(folder, info["data_path"], names)
        videos = {
            camera: (_fill(folder, info.get("video_path"), names | {"video_key": camera}), 0.0) for camera in cameras
        }
        yield Episode(index, line["length"], tuple(line.get("tasks") or ()), table, videos)


def _episodes_3(folder: Path, info: _Info, cameras: Sequence[str]) -> Iterator[Episode]:
    parts = ("chunk_index", "file_index", "from_timestamp")
    columns = ["episode_index", "length", "tasks", "data/chunk_index", "data/file_index"]
    columns += [f"videos/{camera}/{part}" for camera in cameras for part in parts]
    for path in sorted((folder / "meta" / "episodes").glob("*/*.parquet")):
        for row in _read_table(path, columns).to_pylist():
            line: _Line = conform(row, _Line, f"{path}: an episode")
            names = {part: row[f"data/{part}"] for part in parts[:2]}
            videos = {}
            for camera in cameras:
                chunk, file, start = (row[f"videos/{camera}/{part}"] for part in parts)
                pattern = {"video_key": camera, "chunk_index": chunk, "file_index": file}
                start = conform(start, float, f"{path}: from_timestamp of {camera}")
                videos[camera] = (_fill(folder, info.get("video_path"), pattern), float(start))
            table = _fill(folder, info["data_path"], names)
            yield Episode(line["episode_index"], line["length"], tuple(line.get("tasks") or ()), table, videos)


_FIELD = re.compile(r"\{(\w+)(?::0(\d)d)?\}")


def _fill(folder: Path, pattern: str | None, values: dict[str, Any]) -> Path:
    """The file of a pattern such as data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet, inside the folder."""
    # Not by str.format, whose fields can read attributes and ask for any width.
    missing = [name for name, _ in _FIELD.findall(pattern or "") if name not in values]
    if pattern is None or missing:
        raise ValueError(f"{folder}: meta/info.json has the file name {pattern!r}, which cannot be filled in")
    name = _FIELD.sub(lambda field: str(values[field[1]]).zfill(int(field[2] or 0)), pattern)
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if ".." in parts or PurePosixPath(name).is_absolute() or Path(name).is_absolute() or "\0" in name:
        raise ValueError(f"{folder}: names {name[:200]!r}, which is outside the folder")
    return folder / name


def _read_table(path: Path, columns: Sequence[str], episode: int | None = None) -> Any:
    """Columns of a Parquet file, of all rows or of those of an episode."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError("LeRobot datasets require pyarrow; install it with pip install 'fewtokens[jobs]'") from None
    if not path.is_file():
        raise ValueError(f"{path}: no such file; the dataset is incomplete")
    filters = None if episode is None else [("episode_index", "==", episode)]
    try:
        if missing := sorted({*columns} - {*parquet.read_schema(path).names}):
            raise ValueError(f"no column {missing[0]!r}")
        return parquet.read_table(path, columns=list(columns), filters=filters, partitioning=None)
    except (pyarrow.ArrowException, ValueError, KeyError, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({one_line(error)[:200]})") from None


def _values(table: Any, name: str, shape: Sequence[int], episode: Episode) -> NDArray[Any]:
    """A column of numbers or of lists of them as [T,D]."""
    import pyarrow

    column = table.column(name).combine_chunks()
    while isinstance(column, pyarrow.ExtensionArray | pyarrow.ListArray | pyarrow.LargeListArray |
                     pyarrow.FixedSizeListArray):  # fmt: skip
        column = column.storage if isinstance(column, pyarrow.ExtensionArray) else column.flatten()
    values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    if len(values) != len(table) * int(np.prod(shape)) or values.dtype.kind not in "biuf" or column.null_count:
        raise ValueError(
            f"{episode.table}: {name} of episode {episode.index} must be numbers of shape {list(shape)} in each row"
        )
    return values.reshape(len(table), -1)


def _decode(cells: Sequence[Any], name: str, short: int) -> Tensor:
    """Frames from the cells {"bytes", "path"} of an image column, uint8 [T,3,H,W]."""
    contents = [cell["bytes"] for cell in cells if isinstance(cell, dict) and isinstance(cell.get("bytes"), bytes)]
    if len(contents) < len(cells):
        raise ValueError(f"{name} must contain the bytes of images")
    images = [read_image(content, name) for content in contents]
    if len({image.shape for image in images}) > 1:
        raise ValueError(f"{name} contains images of different sizes")
    frames = torch.stack(images)
    return resize_short(frames, short) if short and min(frames.shape[-2:]) > short else frames


def _read_frames(path: Path, expected: NDArray[np.float64], fps: float, side: int) -> Tensor:
    """The frames nearest to these times, in seconds, uint8 [T,3,H,W]."""

    def pick(times: NDArray[np.float64]) -> NDArray[np.int64]:
        after = np.searchsorted(times, expected).clip(max=len(times) - 1)
        before = (after - 1).clip(min=0)
        nearest = np.where(expected - times[before] < times[after] - expected, before, after)
        distance = np.abs(times[nearest] - expected)
        if distance.max() > 0.5 / fps:
            time = expected[int(distance.argmax())]
            raise VideoError(f"{path}: has no frame at {time:.3f} s, where the dataset has a step")
        return nearest.astype(np.int64)

    return read(path, pick=pick, size=side or None).frames
