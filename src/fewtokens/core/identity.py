"""What a result was made from: files and listings told apart by place, size and time of change, not by content."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def identity(paths: Iterable[str | Path], extra: Iterable[str] = ()) -> str:
    """A digest that changes when a listing, or one of its files, does.

    Reads no file: it takes about 10 microseconds a path, so a million files take ten seconds. The order of the paths
    and of `extra` counts. A folder counts with the time of its last change, which is that of its names.

    Args:
        paths: files, or folders; one that is missing counts as missing.
        extra: what else decides the result: labels, settings.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    here = os.getcwd()
    for path in paths:
        place = os.path.normpath(os.path.join(here, path))
        try:
            found = os.stat(place)
            told = f"{found.st_size} {found.st_mtime_ns}"
        except (OSError, ValueError):  # ValueError: a name with a null character
            told = "missing"
        _add(digest, f"{place}\0{told}")
    _add(digest, "")
    for text in extra:
        _add(digest, text)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, text: str) -> None:
    """Adds a text and where it ends, so that no two lists run into the same bytes."""
    content = text.encode("utf-8", "surrogatepass")
    digest.update(len(content).to_bytes(8, "little"))
    digest.update(content)


def source_of(path: str | Path) -> dict[str, object]:
    """What one file, or one folder of images, was when a result was made from it.

    Returns:
        path: absolute, links not followed; bytes: size of the file, or of all files directly in the folder;
        mtime_ns: when it was last changed, in nanoseconds; the newest of those files, for a folder.

    Raises:
        OSError: nothing is there, or it cannot be looked at.
    """
    place = os.path.abspath(path)
    found = os.stat(place)
    if not stat.S_ISDIR(found.st_mode):
        return {"path": place, "bytes": found.st_size, "mtime_ns": found.st_mtime_ns}
    with os.scandir(place) as entries:
        inside = [entry.stat() for entry in entries if not entry.name.startswith(".") and entry.is_file()]
    newest = max((one.st_mtime_ns for one in inside), default=found.st_mtime_ns)
    return {"path": place, "bytes": sum(one.st_size for one in inside), "mtime_ns": newest}


# Keys of an encoder's description in files of earlier versions.
_ENCODER = {"weights": "fingerprint"}
_OPTIONS = {"patch": "patch_size", "tubelet": "tubelet_size"}


def with_current_names(settings: Any) -> Any:
    """Settings read from a file, with the description of their encoder under today's names.

    Args:
        settings: plain values; changed only where "encoder" is an object that an earlier version wrote.
    """
    encoder = settings.get("encoder") if isinstance(settings, dict) else None
    if not isinstance(encoder, dict):
        return settings
    encoder = renamed(encoder, _ENCODER)
    if isinstance(encoder.get("options"), dict):
        encoder["options"] = renamed(encoder["options"], _OPTIONS)
    return settings | {"encoder": encoder}


def renamed(values: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Values under new names, in their order; a value stays under its old name if the new one is taken."""
    return {
        names[name] if name in names and names[name] not in values else name: value for name, value in values.items()
    }
