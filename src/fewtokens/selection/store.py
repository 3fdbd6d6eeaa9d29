"""Features and scores of the frames of a file on disk, so that another process does not compute them again.

One safetensors file for each, in the folder `cache_folder()`; deleting the folder clears it. The files that were not
used for the longest time are removed when all of them have more than `LIMIT` bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from fewtokens.core import files
from fewtokens.core.identity import identity

VARIABLE = "FEWTOKENS_CACHE"
LIMIT = 1 << 30
_KIND = "scores"
# Blocks of a file that are read to identify its content.
_BLOCKS, _BLOCK_BYTES = 64, 1 << 14


def cache_folder() -> Path | None:
    """Returns the folder: "selection" in FEWTOKENS_CACHE or in the user's cache folder of fewtokens.

    None if the variable is set and empty, which turns the cache off.
    """
    given = os.environ.get(VARIABLE)
    if given is not None:
        return Path(given).expanduser() / "selection" if given.strip() else None
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "fewtokens" / "selection"


def file_digest(path: str | Path) -> str:
    """Returns a digest of the size, the modification time and 64 blocks of a file, independent of its path.

    Reading a film in full would take longer than its packet index. Of a folder, a digest of the paths, sizes and
    modification times of its files.
    """
    path = Path(path)
    if not path.is_file():
        return identity([path, *(sorted(path.iterdir()) if path.is_dir() else [])])
    status = path.stat()
    digest = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode())
    with path.open("rb") as file:
        for block in range(_BLOCKS):
            file.seek(max(0, status.st_size - _BLOCK_BYTES) * block // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def stored(key: str, length: int, make: Callable[[], Tensor]) -> Tensor:
    """Returns the values of a key from disk, or makes them and writes them.

    Several processes may use the folder at once: each file appears complete or not at all. A file that is missing or
    damaged is made again; values that cannot be written, as on a full disk, are not kept.

    Args:
        key: what the values depend on.
        length: the number of rows that they have.
        make: returns the values, [length,...].
    """
    folder = cache_folder()
    if folder is None:
        return make()
    path = folder / f"{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}.safetensors"
    with contextlib.suppress(ValueError, OSError):
        values = files.load(path, _KIND)[0].get("values")
        if values is not None and len(values) == length:
            with contextlib.suppress(OSError):  # a folder of another user
                os.utime(path)
            return values
    values = make()
    with contextlib.suppress(OSError):
        files.save(path, _KIND, {"values": values}, {})
        _limit(folder)
    return values


def _limit(folder: Path) -> None:
    """Removes the files that were not used for the longest time until the rest has at most `LIMIT` bytes."""
    states = []
    for path in folder.glob("*.safetensors"):
        with contextlib.suppress(OSError):  # another process removed it
            status = path.stat()
            states.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in states)
    for _, size, path in sorted(states):
        if total <= LIMIT:
            return
        path.unlink(missing_ok=True)
        total -= size
