"""Names of results: distinct, short enough for a file system, and never outside of their folder."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

# File systems limit the bytes of a name; a suffix is added to these names.
_MAX_BYTES = 255 - len(".safetensors")
# Names of files that a run writes in addition to its results.
_RESERVED = ("failed.jsonl",)


def distinct_names(paths: Sequence[Path], taken: Collection[str] = ()) -> list[str]:
    """Returns a distinct name for the result of each path, ignoring case and Unicode composition.

    The name is the stem; if two stems are equal, all parts of the path; if that is ambiguous, or too long for a file
    name, a digest of the absolute path is appended. A name has no folder, so that its file stays in the output folder.

    Args:
        paths: paths of the inputs.
        taken: names of other results, as this function returned them.
    """
    others = {_folded(name) for name in taken}
    stems = Counter([*(_folded(path.stem) for path in paths), *others])
    names = [
        path.stem
        if stems[_folded(path.stem)] == 1
        else "_".join(part for part in path.parts if part not in (path.anchor, "..", "."))
        for path in paths
    ]
    counts = Counter([*(_folded(name) for name in names), *others])
    return [
        name if counts[_folded(name)] == 1 and _is_free(name) else with_digest(name, path)
        for name, path in zip(names, paths, strict=True)
    ]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _is_free(name: str) -> bool:
    return (
        len(os.fsencode(name)) <= _MAX_BYTES
        and _folded(name) not in _RESERVED
        and not name.startswith(".fewtokens-")
        and bool(name.strip(". "))
    )


def separate(names: Sequence[str], sources: Sequence[str], taken: Collection[str] = ()) -> list[str]:
    """Returns the names, with a digest of its source at the end of each that is not the only one.

    `distinct_names` does that with paths; URLs may differ where their paths are the same, as in a//b and a/b.
    """
    counts = Counter(_folded(name) for name in (*names, *taken))
    return [
        name if counts[_folded(name)] == 1 else _with_digest_of(name, source)
        for name, source in zip(names, sources, strict=True)
    ]


def with_digest(name: str, path: Path) -> str:
    """Returns a name, shortened if needed, with a digest of a path at its end."""
    return _with_digest_of(name, os.path.abspath(path))


def _with_digest_of(name: str, text: str) -> str:
    digest = hashlib.sha256(os.fsencode(text)).hexdigest()[:10]
    name = name.lstrip(".")
    while len(os.fsencode(name)) > _MAX_BYTES - len(digest) - 1:
        name = name[:-1]
    return f"{name}-{digest}"


def unique_paths(paths: Iterable[Path]) -> list[Path]:
    """Returns the paths in their order, without repetitions of a location."""
    unique: dict[str, Path] = {}
    for path in paths:
        unique.setdefault(os.path.abspath(path), path)
    return list(unique.values())
