"""Demonstrations of a robot: what it saw, what it felt, what an expert did; in one safetensors file, or R3M's pickles.

R3M (arXiv 2203.12601) and CortexBench (arXiv 2303.18240) publish demonstrations as a pickle of a list of dicts. A
pickle can run any code, so it is not unpickled: `fewtokens.data.pickles` reads plain containers, numbers, text and
numpy arrays out of it, and calls nothing that the file names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fewtokens.core import files
from fewtokens.core.plain import conform
from fewtokens.core.shapes import by_shape
from fewtokens.data.pickles import Budget, RefusedError, read_pickle, to_array

_KIND = "demonstrations"
_PARTS = ("images", "observations", "actions", "rewards")
# The arrays of a file may share parts, but not come to many times its size.
_MOST_FREE = 1 << 24


class _About(TypedDict, total=False):
    """What is used of the values kept beside demonstrations; there may be others."""

    task: str | None
    camera: str | None
    proprio: int


@dataclass(frozen=True)
class Demonstration:
    """One episode of T steps; what is seen at a step is what its action answers to.

    Attributes:
        images: uint8 [T,H,W,3].
        observations: the states, float32 [T,S]; the robot's own come first.
        actions: float32 [T,A].
        rewards: float32 [T].
    """

    images: Tensor
    observations: Tensor
    actions: Tensor
    rewards: Tensor

    __repr__ = by_shape

    def __len__(self) -> int:
        return len(self.actions)


def write(path: str | Path, demonstrations: Sequence[Demonstration], **about: Any) -> Path:
    """Writes demonstrations as one safetensors file, whole or not at all.

    Args:
        path: where to.
        demonstrations: at least one.
        about: plain values kept beside them: the task, the camera, how they were made.

    Raises:
        ValueError: none given.
    """
    if not demonstrations:
        raise ValueError("no demonstration to write")
    tensors = {
        f"{number}.{part}": getattr(one, part) for number, one in enumerate(demonstrations) for part in _PARTS
    }  # fmt: skip
    return files.save(path, _KIND, tensors, {"count": len(demonstrations), "about": about})


def read(path: str | Path, count: int | None = None) -> tuple[list[Demonstration], dict[str, Any]]:
    """Reads what `write` wrote, or a pickle as R3M and CortexBench publish it (.pickle or .pkl).

    Args:
        path: of the file.
        count: only the first ones; all where None.

    Returns:
        the demonstrations, and what is kept beside them ({} for a pickle).

    Raises:
        ValueError: one line: no such file, cut short, not demonstrations, without images, fewer than `count`, of
            unlike sizes, or a pickle with something else than arrays and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    about: dict[str, Any] = {}
    if path.suffix in (".pickle", ".pkl"):
        everything = _read_pickle(path)
        entries, total = everything[:count], len(everything)
    else:
        entries, total, about = _read_entries(path, count)
    budget = Budget(_MOST_FREE + 4 * path.stat().st_size)
    found = [_checked(entry, f"{path}: demonstration {n}", budget) for n, entry in enumerate(entries)]
    if not found:
        raise ValueError(f"{path}: no demonstration in it")
    if count is not None and total < count:
        raise ValueError(f"{path}: holds {total} demonstrations, {count} are wanted; say demos={total}")
    for what in ("observations", "actions"):
        if len(widths := {getattr(one, what).shape[1] for one in found}) > 1:
            raise ValueError(f"{path}: {what} of {sorted(widths)} numbers in one file; they must be of one task")
    return found, about


def _read_entries(path: Path, count: int | None) -> tuple[list[Any], int, dict[str, Any]]:
    """What the file holds of the first demonstrations, how many there are, and what is kept beside them."""
    header = files.load_header(path, _KIND)
    total = conform(header.get("count"), int, f"{path}: count in its header")
    about = conform(header.get("about"), _About, f"{path}: about in its header")
    try:
        with safe_open(path, framework="pt") as file:
            there = range(total if count is None else min(count, total))
            entries = [{part: _numbers(file.get_tensor(f"{n}.{part}")) for part in _PARTS} for n in there]
    except SafetensorError as error:
        raise ValueError(f"{path}: not whole demonstrations ({error})") from None
    return entries, total, about


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()


def _read_pickle(path: Path) -> list[Any]:
    try:
        made = read_pickle(path)
    except RefusedError as error:
        raise ValueError(f"{path}: {error}; only numpy arrays and plain values are read from a pickle") from None
    except ValueError as error:
        raise ValueError(f"{path}: not a whole pickle of demonstrations ({error})") from None
    if not isinstance(made, list):
        raise ValueError(f"{path}: holds a {type(made).__name__}, not a list of demonstrations")
    return made


def _checked(entry: Any, where: str, budget: Budget) -> Demonstration:
    """A demonstration from a dict of arrays."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is a {type(entry).__name__}, not a dict of {', '.join(_PARTS)}")
    if missing := [part for part in _PARTS if part not in entry]:
        raise ValueError(f"{where} has no {' and no '.join(missing)}; record it with them")
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
            number = torch.from_numpy(np.array(array, np.float32))
        number = number.reshape(len(images), -1) if axes == 2 else number.reshape(len(images), -1).sum(1)
        if not number.isfinite().all():
            raise ValueError(f"{where}: {part} are not all finite")
        values.append(number)
    return Demonstration(torch.from_numpy(np.array(images, order="C")), *values)
