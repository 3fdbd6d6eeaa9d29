"""Files that are never half written and never guessed at: safetensors with a JSON header.

A file is written under a temporary name in the same folder and renamed when it is whole. Reading never
unpickles anything.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewtokens.version import __version__

FORMAT_VERSION = 1


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; on success it replaces `path`, on failure it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    umask = os.umask(0)
    os.umask(umask)
    try:
        yield Path(name)
        os.chmod(name, 0o666 & ~umask)  # temporary files are for their owner alone
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def save(path: str | Path, kind: str, tensors: dict[str, Tensor], header: dict[str, Any]) -> Path:
    """Writes `tensors` and a JSON `header` (plain values only) as one safetensors file.

    Args:
        path: where to; the folder is made if needed.
        kind: what the file holds ("tokens", "pipeline"); `load` asks for the same.
        tensors: written as they are, on the CPU, contiguous.
        header: must go through JSON; the versions of fewtokens, torch and Python are added.
    """
    versions = {
        "fewtokens": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
    text = json.dumps({"kind": kind, "version": FORMAT_VERSION, "versions": versions, **header})
    path = Path(path)
    with whole_file(path) as temporary:
        # Tensors that share storage (expanded views) are written out in full.
        whole = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
        save_file(whole, temporary, metadata={"format": "pt", "fewtokens": text})
    return path


def load(path: str | Path, kind: str, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `save` wrote: the tensors and the header.

    Raises:
        ValueError: one line that says what is wrong: no such file, not safetensors, truncated, written by
            something else, another kind, a newer format.
    """
    header = load_header(path, kind)
    with _opened(Path(path), str(device)) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118


def load_header(path: str | Path, kind: str | None = None) -> dict[str, Any]:
    """The JSON header alone, without reading the tensors; raises ValueError as `load` does."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with _opened(path, "cpu") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error}); was it cut short?") from None
    try:
        header = json.loads(metadata["fewtokens"])
    except (KeyError, json.JSONDecodeError):
        raise ValueError(f"{path}: a safetensors file, but not one that fewtokens wrote") from None
    if header.get("version", 0) > FORMAT_VERSION:
        raise ValueError(
            f"{path}: written in format {header['version']}, this fewtokens reads up to {FORMAT_VERSION}; "
            "update fewtokens"
        )
    if kind is not None and header.get("kind") != kind:
        raise ValueError(f"{path}: holds {header.get('kind')}, not {kind}")
    return header


@contextmanager
def _opened(path: Path, device: str) -> Iterator[Any]:
    """`safe_open`, which takes only names that are UTF-8, for any name."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with path.open("rb") as raw, safe_open(f"/dev/fd/{raw.fileno()}", framework="pt", device=device) as file:
            yield file
    else:
        with safe_open(path, framework="pt", device=device) as file:
            yield file


def check_fit(wanted: dict[str, Tensor], found: dict[str, Tensor], says: str) -> None:
    """Raises a ValueError, beginning with `says`, that names tensors missing, left over or of another shape."""
    needed, there = ({name: tuple(value.shape) for name, value in part.items()} for part in (wanted, found))
    for problem, names in (
        ("lacks", needed.keys() - there.keys()),
        ("has, of no use here,", there.keys() - needed.keys()),
        ("has in another shape", {name for name in needed.keys() & there.keys() if needed[name] != there[name]}),
    ):
        if names:
            some = ", ".join(sorted(names)[:5]) + (" ..." if len(names) > 5 else "")
            raise ValueError(f"{says}; it {problem} {some}")
