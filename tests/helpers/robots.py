"""Tiny robot datasets in the layouts of LeRobot, with frames that say which episode and step they show."""

from __future__ import annotations

import io
import json

import numpy as np
from PIL import Image

from fewtokens.video import write

LENGTHS, FPS, STATES, ACTIONS = (5, 3, 7), 10, 4, 2
KEYS = ("observation.images.top", "observation.images.wrist")


def frames(episode, camera, length):
    """Gray frames uint8 [T,32,48,3]: 70 per episode, 8 per step; the second camera is darker by 30 on its left half."""
    values = 30 + 70 * episode + 8 * np.arange(length, dtype=np.uint8)
    pixels = np.broadcast_to(values[:, None, None, None], (length, 32, 48, 3)).copy()
    pixels[:, :, :24] -= 30 * camera
    return pixels


def rows(episode, start):
    """The columns of an episode whose first step is number `start` of the dataset."""
    rng = np.random.default_rng(episode)
    steps = np.arange(LENGTHS[episode])
    return {
        "observation.state": rng.normal(size=(len(steps), STATES)).astype(np.float32),
        "action": rng.normal(size=(len(steps), ACTIONS)).astype(np.float32),
        "next.reward": (steps / 10).astype(np.float32),
        "timestamp": (steps / FPS).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full(len(steps), episode),
        "index": start + steps,
        "task_index": np.zeros(len(steps), int),
    }


def write_table(path, columns):
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: list(values) for name, values in columns.items()}
    parquet.write_table(pyarrow.table(arrays), path)


def describe(version, keys, dtype):
    """The content of meta/info.json."""
    features = {
        "observation.state": {"dtype": "float32", "shape": [STATES], "names": None},
        "action": {"dtype": "float32", "shape": [ACTIONS], "names": None},
        "next.reward": {"dtype": "float32", "shape": [1], "names": None},
        **{name: {"dtype": "float32", "shape": [1], "names": None} for name in ("timestamp",)},
        **{
            name: {"dtype": "int64", "shape": [1], "names": None}
            for name in ("frame_index", "episode_index", "index", "task_index")
        },
        **{
            key: {"dtype": dtype, "shape": [32, 48, 3], "names": ["height", "width", "channels"], "info": None}
            for key in keys
        },
    }
    counts = {"total_episodes": len(LENGTHS), "total_frames": sum(LENGTHS), "total_tasks": 1, "chunks_size": 1000}
    paths = (
        {
            "total_videos": len(LENGTHS) * len(keys), "total_chunks": 1,
            "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        }
        if version == "v2.1"
        else {
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
            "data_files_size_in_mb": 100, "video_files_size_in_mb": 200,
        }
    )  # fmt: skip
    return {"codebase_version": version, "robot_type": "dot", "fps": FPS, "splits": {"train": "0:3"},
            **counts, **paths, "features": features}  # fmt: skip


def write_dataset(folder, version="v2.1", keys=KEYS[:1], dtype="video"):
    """Writes a dataset of three episodes; in v3.0 the first two share an MP4, and all share a Parquet file."""
    starts = np.cumsum((0, *LENGTHS))
    tables = [rows(n, starts[n]) for n in range(len(LENGTHS))]
    if dtype == "image":
        for n, table in enumerate(tables):
            for camera, key in enumerate(keys):
                table[key] = [{"bytes": png(frame), "path": None} for frame in frames(n, camera, LENGTHS[n])]
    (folder / "meta").mkdir(parents=True)
    info = json.dumps(describe(version, keys, dtype), indent=4)
    (folder / "meta" / "info.json").write_text(info, encoding="utf-8")
    if version == "v2.1":
        lines = [{"episode_index": n, "tasks": ["reach"], "length": length} for n, length in enumerate(LENGTHS)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "meta" / "episodes.jsonl").write_text(text, encoding="utf-8")
        for n, table in enumerate(tables):
            write_table(folder / f"data/chunk-000/episode_{n:06d}.parquet", table)
    else:
        whole = {name: [value for table in tables for value in table[name]] for name in tables[0]}
        write_table(folder / "data/chunk-000/file-000.parquet", whole)
        files, begins = (0, 0, 1), (0.0, LENGTHS[0] / FPS, 0.0)
        numbers = {"episode_index": range(3), "length": LENGTHS, "tasks": [["reach"]] * 3,
                   "data/chunk_index": [0] * 3, "data/file_index": [0] * 3,
                   "dataset_from_index": starts[:3], "dataset_to_index": starts[1:]}  # fmt: skip
        for key in keys if dtype == "video" else ():
            ends = [begin + length / FPS for begin, length in zip(begins, LENGTHS, strict=True)]
            numbers |= {f"videos/{key}/chunk_index": [0] * 3, f"videos/{key}/file_index": files,
                        f"videos/{key}/from_timestamp": begins, f"videos/{key}/to_timestamp": ends}  # fmt: skip
        write_table(folder / "meta/episodes/chunk-000/file-000.parquet", numbers)
    for camera, key in enumerate(keys if dtype == "video" else ()):
        parts = [frames(n, camera, length) for n, length in enumerate(LENGTHS)]
        if version == "v2.1":
            for n, part in enumerate(parts):
                save(folder / f"videos/chunk-000/{key}/episode_{n:06d}.mp4", part)
        else:
            save(folder / f"videos/{key}/chunk-000/file-000.mp4", np.concatenate(parts[:2]))
            save(folder / f"videos/{key}/chunk-000/file-001.mp4", parts[2])
    return folder


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, pixels, fps=FPS, quality=1)


def png(frame):
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "png")
    return file.getvalue()
