"""Random weights in the released layout, by the names and shapes of the authors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


def linear(name: str, out: int, *dims: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out, *dims), **({f"{name}.bias": (out,)} if bias else {})}


def norm(name: str, dim: int) -> Shapes:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def random(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Values that keep features at about the scale of 1, so that every tensor matters."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name, value in tensors.items():
        if name.endswith("weight") and value.ndim > 1 and "embedding" not in name:
            value *= value[0].numel() ** -0.5
        elif value.ndim == 1:
            value.mul_(0.2).add_(name.endswith("weight"))
    return tensors


def write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    return folder


def block(x: Tensor, w: dict[str, Tensor], names: dict[str, str], heads: int, prefix: str) -> Tensor:
    """A pre-norm transformer block with weights under the names of the authors."""

    def get(part: str, kind: str) -> Tensor | None:
        return w.get(f"{prefix}.{names[part]}{kind}")

    def layer(part: str, x: Tensor) -> Tensor:
        weight = get(part, "weight")
        assert weight is not None
        return F.linear(x, weight, get(part, "bias"))

    def normal(part: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], get(part, "weight"), get(part, "bias"))

    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in layer("qkv", normal("norm1")).chunk(3, -1))
    attention = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
    x = x + layer("out", attention.transpose(1, 2).flatten(2))
    return x + layer("fc2", F.gelu(layer("fc1", normal("norm2"))))
