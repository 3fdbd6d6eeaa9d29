"""Methods of other packages: entry points of the group `fewtokens.methods`."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Collection
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

GROUP = "fewtokens.methods"
# Messages of warnings that this process has already given.
_warned: set[str] = set()


def installed() -> tuple[EntryPoint, ...]:
    """Returns the installed entry points of the group.

    Looking for them opens a file of every installed package, so this is done again only after a folder of `sys.path`
    has changed, as when a package is installed.
    """
    return _find(tuple((folder, _changed(folder)) for folder in sys.path))


@lru_cache(maxsize=1)
def _find(folders: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


def _changed(folder: str) -> int:
    try:
        return os.stat(folder or ".").st_mtime_ns
    except OSError:
        return 0


def external(reserved: Collection[str] = ()) -> dict[str, EntryPoint]:
    """Returns the installed entry points by name, without importing their packages.

    Args:
        reserved: names of built-in methods. An entry point of such a name is ignored, with one warning per process, and
            so is the second of two entry points of the same name.
    """
    found: dict[str, EntryPoint] = {}
    for point in sorted(installed(), key=package_of):
        if point.name in reserved:
            warn_once(f"{describe(point)} is ignored: fewtokens has a method {point.name!r}; rename the entry point")
        elif point.value != found.setdefault(point.name, point).value:
            warn_once(f"{describe(point)} is ignored: {package_of(found[point.name])} registers the same name")
    return found


def name_of(cls: type) -> str | None:
    """Returns the name of the entry point that refers to a class, or None if there is none."""
    package = cls.__module__.partition(".")[0]
    points = [
        point for point in installed() if point.module.partition(".")[0] == package and not _is_built_in(point.name)
    ]
    for point in points:
        if (point.module, point.attr) == (cls.__module__, cls.__qualname__):
            return point.name
    for point in points:  # a name that the package exports, such as my_package:MyMethod
        try:
            if point.load() is cls:
                return point.name
        except Exception:  # broken, or the package is still being imported
            continue
    return None


def _is_built_in(name: str) -> bool:
    folders = (Path(__file__).parents[1] / "methods").glob(f"*/{name}.py")
    return any(path.parent.name != "ops" for path in folders)


def package_of(point: EntryPoint) -> str:
    """Returns the name of the distribution of an entry point, or that of its package if it is unknown."""
    return point.dist.name if point.dist is not None else point.module.partition(".")[0]


def describe(point: EntryPoint) -> str:
    """Returns the package, the name and the value of an entry point, for messages."""
    return f"the entry point {point.name} = {point.value!r} of {package_of(point)}"


def load(point: EntryPoint, base: type) -> type[Any]:
    """Imports the class of an entry point.

    Args:
        point: the entry point.
        base: the class that it must extend.

    Raises:
        ValueError: the import fails, or its value is not a subclass of `base`.
    """
    try:
        loaded = point.load()
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{describe(point)} cannot be loaded ({reason})") from error
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise ValueError(f"{describe(point)} must be a class that extends Reducer, Resampler or another base class")
    return loaded


def warn_once(message: str) -> None:
    """Warns, but only once per process for each message."""
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=2)
