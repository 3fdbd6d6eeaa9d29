"""Walks folders and finds the files that lists name, safely with links and ".."."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path

_DIGITS = re.compile(r"(\d+)")


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key for natural order: 2 before 10."""
    # Python converts at most 4,300 digits to an int.
    parts = _DIGITS.split(name)
    return [(int(part), "") if part.isdecimal() and len(part) < 4000 else (-1, part) for part in parts]


def walk(source: Path, skipped: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yields `source` and every folder below it with the names of its files, both sorted; hidden ones are skipped.

    Links to folders are followed too, after all other folders and each target once. A link to a folder that is
    visited anyway or to a parent folder adds a line to `skipped`, as does a folder that cannot be read. One warning
    reports the number of links that point outside `source`.
    """
    top = os.path.realpath(source)
    visited = {_identity(path) for path in (top, *map(str, Path(top).parents))}
    outside: list[str] = []
    folders, links = [str(source)], list[str]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        try:
            with os.scandir(folder) as entries:
                visible = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            skipped.append(f"{folder}: cannot be read ({error.strerror})")
            continue
        files, subfolders = list[str](), list[str]()
        for entry in sorted(visible, key=lambda entry: entry.name):
            if entry.is_file():
                files.append(entry.name)
                if entry.is_symlink() and not _is_under(os.path.realpath(entry.path), top):
                    outside.append(entry.path)
            elif entry.is_dir():
                (links if entry.is_symlink() else subfolders).append(entry.path)
            elif entry.is_symlink():
                skipped.append(f"{entry.path}: a broken link")
        yield folder, files
        # Links are followed only when no folder is left.
        folders.extend(reversed([subfolder for subfolder in subfolders if _is_new(subfolder, visited, skipped)]))
        while not folders and links and not _is_new(links[0], visited, skipped):
            links.pop(0)
        if not folders and links and not _is_under(os.path.realpath(links[0]), top):
            outside.append(links[0])
    warn_of_links(source, outside)


def _is_new(folder: str, visited: set[tuple[int, int]], skipped: list[str]) -> bool:
    """Whether a folder has not been visited, under this or another name; marks it as visited."""
    if (key := _identity(folder)) in visited:
        skipped.append(f"{folder}: this folder is already included under another name")
        return False
    visited.add(key)
    return True


def _identity(folder: str) -> tuple[int, int]:
    """A key of a folder that does not depend on its name."""
    try:
        status = os.stat(folder)
    except OSError:
        return (-1, -1)
    return status.st_dev, status.st_ino


def _is_under(path: str, top: str) -> bool:
    return path == top or path.startswith(top.rstrip(os.sep) + os.sep)


def warn_of_links(source: Path, outside: Collection[str]) -> None:
    """Emits one warning about the links that point outside `source`; they are followed, as the user created them."""
    if outside:
        count = "1 link" if len(outside) == 1 else f"{len(outside)} links"
        warnings.warn(f"{source}: followed {count} outside it, the first is {min(outside)}", stacklevel=3)


class Lookup:
    """Finds the files that a list names.

    Attributes:
        base: the folder of the files.
        outside: files that a link places outside `base`.
    """

    def __init__(self, base: Path) -> None:
        self.base, self.outside = base, set[str]()
        self._top = os.path.realpath(base)
        self._parents: dict[str, str] = {}
        self._paths: dict[str, Path | None] = {}

    def find(self, name: str) -> Path | None:
        r"""The file or folder with that name, or None. Names may have Windows separators (a\b) or be absolute.

        Raises:
            ValueError: a relative name with "..", which points outside the folder.
        """
        if name not in self._paths:
            self._paths[name] = self._find(name)
        return self._paths[name]

    def _find(self, name: str) -> Path | None:
        for variant in dict.fromkeys((name, name.replace("\\", "/"))):
            path, absolute = os.path.join(self.base, variant), os.path.isabs(variant)
            if not absolute and ".." in variant.split("/"):
                raise ValueError(f"the list names {name[:200]!r}, which is outside {self.base}")
            # Excludes devices and pipes, which could be read forever; both functions are False on any error.
            if absolute == os.path.isabs(name) and variant and (os.path.isfile(path) or os.path.isdir(path)):
                if not absolute and not _is_under(self._real(path), self._top):
                    self.outside.add(path)
                return Path(path)
        return None

    def _real(self, path: str) -> str:
        if os.path.islink(path):
            return os.path.realpath(path)
        folder, name = os.path.split(path)
        if folder not in self._parents:
            self._parents[folder] = os.path.realpath(folder)
        return os.path.join(self._parents[folder], name)
