"""Devices and dtypes by name."""

from __future__ import annotations

import torch

from fewtokens.core.checks import DEVICES, check_device, check_dtype


def pick_device(name: str | torch.device) -> torch.device:
    """Returns the device with this name; "auto" selects the best available one.

    Args:
        name: "auto" (cuda, mps or cpu), "cpu", "cuda", "cuda:1", "mps", or a `torch.device`.

    Raises:
        ValueError: unknown name, or the device is not available.
    """
    name = str(name)
    check_device(name)
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in DEVICES if available[kind]))
    kind, _, index = name.partition(":")
    if not available[kind] or (index and kind == "cuda" and int(index) >= torch.cuda.device_count()):
        raise ValueError(f"no device {name}; available: {', '.join(k for k, ok in available.items() if ok)}")
    return torch.device(name)


def pick_dtype(name: str | torch.dtype) -> torch.dtype:
    """Returns the dtype with this name, or the `torch.dtype` itself.

    Raises:
        ValueError: not float32, float16 or bfloat16.
    """
    name = name if isinstance(name, str) else str(name).removeprefix("torch.")
    check_dtype(name)
    dtype: torch.dtype = getattr(torch, name)
    return dtype
