"""Weights of published networks, which are not part of this package: the error if they are missing, and their hash."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn


class MissingWeights(ValueError):
    """A measure needs the weights of a published network, and their file was not given or is not one."""


def check_file(measure: str, path: str | Path | None, description: str) -> Path:
    """Returns the path.

    Args:
        measure: name of the measure, for the error.
        path: of the weights, or None.
        description: which weights they are and how they are passed, for the error.

    Raises:
        MissingWeights: `path` is None or not a file.
    """
    if path is None:
        raise MissingWeights(f"{measure} requires {description}")
    if not Path(path).is_file():
        raise MissingWeights(f"{measure} requires {description}: {path} does not exist")
    return Path(path)


def read_weights(measure: str, path: str | Path | None, description: str) -> dict[str, Tensor]:
    """Reads a state dict from a .safetensors file, or from a file of torch.save, which runs no code.

    Args:
        measure, path, description: as for `check_file`.

    Raises:
        MissingWeights: `path` is None, not a file, or not one of weights.
    """
    path = check_file(measure, path, description)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError):
        raise MissingWeights(f"{measure} requires {description}: {path} is not a file of weights") from None
    if not (isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())):
        raise MissingWeights(f"{measure} requires {description}: {path} is not a state dict")
    return state


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
