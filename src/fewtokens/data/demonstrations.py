"""Demonstrations of a robot: what it saw, what it felt, what an expert did; in one safetensors file, or R3M's pickles.

R3M (arXiv 2203.12601) and CortexBench (arXiv 2303.18240) publish demonstrations as a pickle of a list of dicts. A
pickle can run any code, so it is not unpickled freely here: `read` understands plain containers, numbers, text and
numpy arrays, builds the arrays from their bytes itself, and calls nothing that the file names.
"""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from fewtokens import files

_KIND = "demonstrations"
_PARTS = ("images", "observations", "actions", "rewards")


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
    if path.suffix in (".pickle", ".pkl"):
        entries, about = _read_pickle(path), {}
        total = len(entries)
        found = [_checked(entry, f"{path}: demonstration {n}") for n, entry in enumerate(entries[:count])]
    else:
        header = files.load_header(path, _KIND)
        total, about = int(header["count"]), dict(header["about"])
        with safe_open(path, framework="pt") as file:
            there = range(total if count is None else min(count, total))
            entries = [{part: file.get_tensor(f"{n}.{part}").numpy() for part in _PARTS} for n in there]
        found = [_checked(entry, f"{path}: demonstration {n}") for n, entry in enumerate(entries)]
    if not found:
        raise ValueError(f"{path}: no demonstration in it")
    if count is not None and total < count:
        raise ValueError(f"{path}: holds {total} demonstrations, {count} are wanted; say demos={total}")
    for what in ("observations", "actions"):
        if len(widths := {getattr(one, what).shape[1] for one in found}) > 1:
            raise ValueError(f"{path}: {what} of {sorted(widths)} numbers in one file; they must be of one task")
    return found, about


def _checked(entry: Any, where: str) -> Demonstration:
    """A demonstration from a dict of arrays."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is a {type(entry).__name__}, not a dict of {', '.join(_PARTS)}")
    if missing := [part for part in _PARTS if part not in entry]:
        raise ValueError(f"{where} has no {' and no '.join(missing)}; record it with them")
    images, *rest = (np.asarray(entry[part]) for part in _PARTS)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
        raise ValueError(f"{where}: images must be uint8 [T,H,W,3], got {images.dtype} {list(images.shape)}")
    values = []
    for part, array, axes in zip(_PARTS[1:], rest, (2, 2, 1), strict=True):
        if array.dtype.kind not in "biuf" or len(array) != len(images):
            raise ValueError(f"{where}: {part} must be numbers for {len(images)} images, got {list(array.shape)}")
        number = torch.from_numpy(np.array(array, np.float32))
        number = number.reshape(len(images), -1) if axes == 2 else number.reshape(len(images), -1).sum(1)
        if not number.isfinite().all():
            raise ValueError(f"{where}: {part} are not all finite")
        values.append(number)
    return Demonstration(torch.from_numpy(np.array(images, order="C")), *values)


def _read_pickle(path: Path) -> list[Any]:
    try:
        with path.open("rb") as file:
            made = _plain(_Unpickler(file, encoding="latin1").load())
    except _Refused as error:
        raise ValueError(f"{path}: {error}; only numpy arrays and plain values are read from a pickle") from None
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a broken pickle fails in any way it likes
        reason = " ".join(f"{type(error).__name__} {error}".split())[:120]
        raise ValueError(f"{path}: not a whole pickle of demonstrations ({reason})") from None
    if not isinstance(made, list):
        raise ValueError(f"{path}: holds a {type(made).__name__}, not a list of demonstrations")
    return made


class _Refused(ValueError):
    """What the file names is not read."""


class _Dtype:
    """Stands for a numpy dtype in a pickle: numbers of one kind, or objects (each an element of its own)."""

    def __init__(self, name: Any = "", *_: Any) -> None:
        said = str(name)
        if said[:1] not in tuple("biufO") or not (said[1:].isdigit() or said == "O"):
            raise _Refused(f"has an array of {said[:40]!r}")
        self.name: str = said
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1] if state[1] in "<>" else "="

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.name)


class _Array:
    """Stands for a numpy array in a pickle: made of bytes, checked against its shape."""

    def __init__(self, *_: Any) -> None:
        self.value: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        self.value = _array(raw, dtype, shape, "F" if fortran else "C")


def _array(raw: Any, dtype: _Dtype, shape: Any, order: str = "C") -> Any:
    """The array of these bytes; a nested list where its elements are objects."""
    shape = tuple(int(size) for size in shape)
    if dtype.name[0] == "O":
        if math.prod(shape) != len(raw):
            raise ValueError("an array of objects that is cut short")
        return list(raw)
    data = raw.encode("latin1") if isinstance(raw, str) else bytes(raw)
    return np.frombuffer(data, dtype.numpy()).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: _Dtype, raw: Any) -> Any:
    return _array(raw, dtype, ())


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: str) -> Any:
    return _array(raw, dtype, shape, order)


def _encode(text: Any, encoding: str = "latin1") -> bytes:
    """How old protocols write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused("has text in another codec")
    return text.encode("latin1")


# What a pickle may name, and what answers to it here; the modules are those of numpy 1 and of numpy 2.
_ANSWERS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    **{
        (f"numpy.{core}.{module}", name): answer
        for core in ("core", "_core")
        for module, name, answer in (
            ("multiarray", "_reconstruct", _Array),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _frombuffer),
        )
    },
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ANSWERS:
            raise _Refused(f"names {module}.{name}")
        return _ANSWERS[module, name]


def _plain(value: Any) -> Any:
    """The same with arrays where they were stood for."""
    if isinstance(value, _Array):
        if value.value is None:
            raise ValueError("an array without its content")
        return _plain(value.value)
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value
