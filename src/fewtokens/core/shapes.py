"""`__repr__` for values that contain tensors: one line, with shapes instead of elements."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch


def shape_repr(value: Any) -> str:
    """Formats a dataclass or named tuple as `Name(field=float32[2, 120, 24], ...)`, without fields that are None."""
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
    else:
        names = list(value._fields)
    parts = [f"{name}={_short(item)}" for name in names if (item := getattr(value, name)) is not None]
    return f"{type(value).__name__}({', '.join(parts)})"


def _short(value: Any) -> str:
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, list | tuple):
        if len(value) > 3 or any(isinstance(item, torch.Tensor | np.ndarray) for item in value):
            return f"{type(value).__name__} of {len(value)}"
    elif isinstance(value, dict):
        return f"{{{', '.join(map(str, value))}}}"
    elif isinstance(value, Path):
        return repr(str(value))
    return " ".join(repr(value).split())
