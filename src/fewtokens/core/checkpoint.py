"""Reads training checkpoints of PyTorch. Files are unpickled with `weights_only=True`, which runs no code."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")


class _Setting:
    """Stands for an object among the settings of a run, whose content is not read."""

    def __init__(self, *content: Any) -> None: ...

    def __setstate__(self, content: Any) -> None: ...


# What checkpoints contain in addition to tensors: settings of the run, and scores.
_SETTINGS: tuple[Any, ...] = (
    *(
        (_Setting, f"omegaconf.{name}")
        for name in (
            "dictconfig.DictConfig", "listconfig.ListConfig", "base.ContainerMetadata", "base.Metadata",
            "nodes.AnyNode",
        )
    ),
    (_Setting, "typing.Any"), (_Setting, "collections.defaultdict"), (_Setting, "numpy.dtype"),
    (_Setting, "numpy.core.multiarray.scalar"), (_Setting, "numpy._core.multiarray.scalar"),
    dict, list, int, float, str, argparse.Namespace, pathlib.PosixPath,
)  # fmt: skip


def read_checkpoint(path: Path, parts: Sequence[str]) -> dict[Any, Any]:
    """Returns the content of a file of `torch.save`.

    Args:
        path: the file.
        parts: names of dictionaries that may contain the tensors, on the CPU; of those that exist, each is entered in
            this order.

    Raises:
        ValueError: it is damaged, or contains code; one line.
    """
    _check_zip(path)
    try:
        with torch.serialization.safe_globals(list(_SETTINGS)):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises all kinds of errors for damaged files
        reason = _reason(error)
        if isinstance(error, pickle.UnpicklingError):
            raise ValueError(
                f"{path}: contains more than tensors; loading it could run arbitrary code ({reason})"
            ) from None
        raise ValueError(f"{path}: not a readable checkpoint ({reason}); is it truncated?") from None
    for name in parts:
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(name), dict):
            checkpoint = checkpoint[name]
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path}: contains a {type(checkpoint).__name__} instead of named tensors")
    return checkpoint


def _reason(error: Exception) -> str:
    """The message of torch without its advice to load the file anyway."""
    message = " ".join(str(error).split()).rpartition("WeightsUnpickler error: ")[2].partition(" Please use ")[0]
    return message.partition(" Check the documentation")[0][:200].strip() or type(error).__name__


def _check_zip(path: Path) -> None:
    """Raises ValueError if an archive is larger unpacked than on disk: torch does not compress its files."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except Exception as error:  # a damaged archive directory
        raise ValueError(f"{path}: not a readable checkpoint ({error}); is it truncated?") from None
    if unpacked > 2 * path.stat().st_size + (1 << 20):
        raise ValueError(f"{path}: unpacks to {unpacked} bytes from {path.stat().st_size}; not a file saved by torch")
