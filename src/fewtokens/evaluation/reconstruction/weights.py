"""Weights of published networks, which are not part of this package: the error if they are missing, and their hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import nn


class MissingWeights(ValueError):
    """A measure needs the weights of a published network, and their file was not given or is not one."""


def hash_file(path: str | Path) -> str:
    """The SHA-256 of a file's content, 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_weights(network: nn.Module) -> str:
    """The SHA-256 of the names, shapes and values of all tensors of a network, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
