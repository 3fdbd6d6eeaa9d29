"""Names on the disk: folders looked through, names of lists looked up, and neither led astray by links or dots."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path

_DIGITS = re.compile(r"(\d+)")


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts 2 before 10."""
    # Python converts no more than 4,300 digits.
    parts = _DIGITS.split(name)
    return [(int(part), "") if part.isdecimal() and len(part) < 4000 else (-1, part) for part in parts]


def walk(source: Path, left_out: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Every folder under `source`, itself first, with the names of its files; both sorted, hidden ones left out.

    Folders that are links are looked through too, after all that are not, each once; a link to what is looked
    through anyway, or to a folder above, adds a line to `left_out`, as does what cannot be read. One warning says
    how many links lead out of `source`.
    """
    top = os.path.realpath(source)
    seen = {_number(place) for place in (top, *map(str, Path(top).parents))}
    outward: list[str] = []
    folders, links = [str(source)], list[str]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        try:
            with os.scandir(folder) as entries:
                inside = sorted((one for one in entries if not one.name.startswith(".")), key=lambda one: one.name)
        except OSError as error:
            left_out.append(f"{folder}: cannot be read ({error.strerror})")
            continue
        files, deeper = list[str](), list[str]()
        for entry in inside:
            if entry.is_file():
                files.append(entry.name)
                if entry.is_symlink() and not _under(os.path.realpath(entry.path), top):
                    outward.append(entry.path)
            elif entry.is_dir():
                (links if entry.is_symlink() else deeper).append(entry.path)
            elif entry.is_symlink():
                left_out.append(f"{entry.path}: a link to no file")
        yield folder, files
        # The next link that leads to something new waits until no other folder does.
        folders.extend(reversed([one for one in deeper if _is_new(one, seen, left_out)]))
        while not folders and links and not _is_new(links[0], seen, left_out):
            links.pop(0)
        if not folders and links and not _under(os.path.realpath(links[0]), top):
            outward.append(links[0])
    warn_of_links(source, outward)


def _is_new(folder: str, seen: set[tuple[int, int]], left_out: list[str]) -> bool:
    """Whether a folder has not been looked through under another name; notes that it is now."""
    if (number := _number(folder)) in seen:
        left_out.append(f"{folder}: a folder that is looked through already, under another name")
        return False
    seen.add(number)
    return True


def _number(folder: str) -> tuple[int, int]:
    """What a folder is, whatever it is called."""
    try:
        found = os.stat(folder)
    except OSError:
        return (-1, -1)
    return found.st_dev, found.st_ino


def _under(place: str, top: str) -> bool:
    return place == top or place.startswith(top.rstrip(os.sep) + os.sep)


def warn_of_links(source: Path, outward: Collection[str]) -> None:
    """One warning about links out of `source`; they are the user's own, so they are followed."""
    if outward:
        one = len(outward) == 1
        what = "1 link leads out of it and is" if one else f"{len(outward)} links lead out of it and are"
        warnings.warn(f"{source}: {what} followed, the first is {min(outward)}", stacklevel=3)


class Lookup:
    """Finds the files that a list names in the folder where they lie.

    Attributes:
        base: the folder.
        outward: files found that lie elsewhere because of a link.
    """

    def __init__(self, base: Path) -> None:
        self.base, self.outward = base, set[str]()
        self._top = os.path.realpath(base)
        self._parents: dict[str, str] = {}
        self._found: dict[str, Path | None] = {}

    def find(self, name: str) -> Path | None:
        r"""The file or folder of that name, also where the list was written on Windows (a\b); None if there is none.

        An absolute name is taken as it is.

        Raises:
            ValueError: a name with "..", which leads out of the folder.
        """
        if name not in self._found:
            self._found[name] = self._look(name)
        return self._found[name]

    def _look(self, name: str) -> Path | None:
        for written in dict.fromkeys((name, name.replace("\\", "/"))):
            place, whole = os.path.join(self.base, written), os.path.isabs(written)
            if not whole and ".." in written.split("/"):
                raise ValueError(f"the list names {name[:200]!r}, which leads out of {self.base}")
            # Neither devices nor pipes, which would be read for ever; both functions are False for any error.
            if whole == os.path.isabs(name) and written and (os.path.isfile(place) or os.path.isdir(place)):
                if not whole and not _under(self._real(place), self._top):
                    self.outward.add(place)
                return Path(place)
        return None

    def _real(self, place: str) -> str:
        if os.path.islink(place):
            return os.path.realpath(place)
        folder, name = os.path.split(place)
        if folder not in self._parents:
            self._parents[folder] = os.path.realpath(folder)
        return os.path.join(self._parents[folder], name)
