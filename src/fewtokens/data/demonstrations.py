"""Robot demonstrations (images, states, expert actions, rewards): safetensors, pickles of R3M, LeRobot datasets.

R3M (arXiv 2203.12601) and CortexBench (arXiv 2303.18240) publish demonstrations as a pickle of a list of dicts. A
pickle can run any code, so it is not unpickled: `fewtokens.data.pickles` reads simple containers, numbers, text and
numpy arrays from it and calls nothing that the file names.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fewtokens.core import files
from fewtokens.core.plain import conform
from fewtokens.core.shapes import shape_repr
from fewtokens.data.lerobot import STATE, open_dataset, read_episodes
from fewtokens.data.pickles import MemoryBudget, RefusedError, read_pickle, to_array

_KIND = "demonstrations"
_PARTS = ("images", "observations", "actions", "rewards")
# The arrays of a file may share memory, but may not expand to many times the size of the file.
_MIN_BUDGET = 1 << 24


class _Metadata(TypedDict, total=False):
    """The metadata that this package uses; there may be more."""

    task: str | None
    camera: str | None
    proprio: int


@dataclass(frozen=True)
class Demonstration:
    """One episode of T steps. The action of a step responds to the image and the state of the same step.

    Attributes:
        images: uint8 [T,H,W,3].
        observations: the states, float32 [T,S]; proprioception comes first.
        actions: float32 [T,A].
        rewards: float32 [T].
    """

    images: Tensor
    observations: Tensor
    actions: Tensor
    rewards: Tensor

    __repr__ = shape_repr

    def __len__(self) -> int:
        return len(self.actions)


def write(path: str | Path, demonstrations: Sequence[Demonstration], **about: Any) -> Path:
    """Writes demonstrations to one safetensors file, atomically.

    Args:
        path: the output file.
        demonstrations: at least one.
        about: metadata, plain values: the task, the camera, how the demonstrations were recorded.

    Raises:
        ValueError: there are no demonstrations.
    """
    if not demonstrations:
        raise ValueError("no demonstrations to write")
    tensors = {
        f"{n}.{part}": getattr(demonstration, part) for n, demonstration in enumerate(demonstrations) for part in _PARTS
    }
    return files.save(path, _KIND, tensors, {"count": len(demonstrations), "about": about})


def read(
    path: str | Path, count: int | None = None, *, camera: str | None = None, short: int = 0
) -> tuple[list[Demonstration], dict[str, Any]]:
    """Reads a file of `write`, a pickle as R3M and CortexBench publish it (.pickle or .pkl), or a LeRobot dataset.

    Args:
        path: the file, or the folder of a LeRobot dataset (version 2.0, 2.1 or 3.0).
        count: read only the first `count` demonstrations; None for all.
        camera: the camera of a LeRobot dataset that has several, see `fewtokens.data.lerobot.Dataset.find_camera`.
        short: frames of a LeRobot dataset with a longer short side are reduced to it, in pixels; 0 keeps their size.

    Returns:
        the demonstrations and their metadata ({} for a pickle; the number of states, "proprio", for LeRobot).

    Raises:
        ValueError: one line: no such file, a truncated file, not demonstrations, no images, fewer than `count`,
            different sizes, or a pickle with anything other than arrays and plain values.
    """
    path = Path(path)
    about: dict[str, Any] = {}
    entries: Iterable[Any]
    if path.is_dir():
        dataset = open_dataset(path)
        total, entries = len(dataset.episodes), read_episodes(dataset, count, camera=camera, short=short)
        about = {"proprio": int(np.prod(dataset.features.get(STATE, 0)))}
        if len(tasks := {task for episode in dataset.episodes[:count] for task in episode.tasks}) > 1:
            warnings.warn(f"{path}: contains {len(tasks)} tasks, which a policy cannot tell apart", stacklevel=2)
    elif not path.is_file():
        raise ValueError(f"{path}: no such file")
    elif path.suffix in (".pickle", ".pkl"):
        contents = _read_pickle(path)
        entries, total = contents[:count], len(contents)
    else:
        entries, total, about = _read_entries(path, count)
    # The frames of a video are many times its size.
    budget = MemoryBudget(sys.maxsize if path.is_dir() else _MIN_BUDGET + 4 * path.stat().st_size)
    demonstrations = [_to_demonstration(entry, f"{path}: demonstration {n}", budget) for n, entry in enumerate(entries)]
    if not demonstrations:
        raise ValueError(f"{path}: contains no demonstrations")
    if count is not None and total < count:
        raise ValueError(f"{path}: contains {total} demonstrations, {count} requested; use demos={total}")
    for part in ("observations", "actions"):
        if len(dims := {getattr(demonstration, part).shape[1] for demonstration in demonstrations}) > 1:
            raise ValueError(f"{path}: {part} have {sorted(dims)} values; a file must contain a single task")
    return demonstrations, about


def _read_entries(path: Path, count: int | None) -> tuple[list[Any], int, dict[str, Any]]:
    """The arrays of the first `count` demonstrations, the number of all demonstrations, and the metadata."""
    header = files.load_header(path, _KIND)
    total = conform(header.get("count"), int, f"{path}: count in its header")
    about = conform(header.get("about"), _Metadata, f"{path}: about in its header")
    try:
        with safe_open(path, framework="pt") as file:
            indices = range(total if count is None else min(count, total))
            entries = [{part: _to_numpy(file.get_tensor(f"{n}.{part}")) for part in _PARTS} for n in indices]
    except SafetensorError as error:
        raise ValueError(f"{path}: incomplete demonstrations ({error})") from None
    return entries, total, about


def _to_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()


def _read_pickle(path: Path) -> list[Any]:
    try:
        contents = read_pickle(path)
    except RefusedError as error:
        raise ValueError(f"{path}: {error}; only numpy arrays and plain values are read from a pickle") from None
    except ValueError as error:
        raise ValueError(f"{path}: not a complete pickle of demonstrations ({error})") from None
    if not isinstance(contents, list):
        raise ValueError(f"{path}: contains a {type(contents).__name__}, not a list of demonstrations")
    return contents


def _to_demonstration(entry: Any, where: str, budget: MemoryBudget) -> Demonstration:
    """Creates a demonstration from a dict of arrays."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is a {type(entry).__name__}, not a dict of {', '.join(_PARTS)}")
    if missing := [part for part in _PARTS if part not in entry]:
        raise ValueError(f"{where} has no {' and no '.join(missing)}; record the demonstrations with all parts")
    arrays = []
    for part in _PARTS:
        try:
            arrays.append(to_array(entry[part], budget))
        except ValueError as error:
            raise ValueError(f"{where}: {part} must be numbers ({error})") from None
    images, *rest = arrays
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
        raise ValueError(f"{where}: images must be uint8 [T,H,W,3], got {images.dtype} {list(images.shape)}")
    values = []
    for part, array, axes in zip(_PARTS[1:], rest, (2, 2, 1), strict=True):
        if array.dtype.kind not in "biuf" or array.shape[:1] != images.shape[:1] or 0 in array.shape:
            raise ValueError(f"{where}: {part} must be numbers for {len(images)} images, got {list(array.shape)}")
        with np.errstate(over="ignore"):
            tensor = torch.from_numpy(np.array(array, np.float32))
        tensor = tensor.reshape(len(images), -1) if axes == 2 else tensor.reshape(len(images), -1).sum(1)
        if not tensor.isfinite().all():
            raise ValueError(f"{where}: {part} contain NaN or infinity")
        values.append(tensor)
    return Demonstration(torch.from_numpy(np.array(images, order="C")), *values)
