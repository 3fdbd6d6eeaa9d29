"""Devices and dtypes by name."""

from __future__ import annotations

import torch

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def pick_device(name: str | torch.device) -> torch.device:
    """The device of this name; "auto" is the best available one.

    Args:
        name: "auto" (cuda, mps or cpu), "cpu", "cuda", "cuda:1", "mps", or a `torch.device`.

    Raises:
        ValueError: no such name, or this machine has no such device.
    """
    name = str(name)
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if there[kind]))
    kind, _, number = name.partition(":")
    if kind not in there or (number and not number.isdigit()):
        raise ValueError(f"device must be auto, cpu, cuda or mps, got {name!r}")
    if not there[kind] or (number and kind == "cuda" and int(number) >= torch.cuda.device_count()):
        raise ValueError(f"this machine has no device {name}; there is {', '.join(k for k, ok in there.items() if ok)}")
    return torch.device(name)


def pick_dtype(name: str | torch.dtype) -> torch.dtype:
    """The dtype of this name, or the `torch.dtype` itself.

    Raises:
        ValueError: another than float32, float16 and bfloat16.
    """
    dtype = _DTYPES.get(name) if isinstance(name, str) else name
    if dtype is None or dtype not in _DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {str(name)!r}")
    return dtype
