"""The inputs of a run other than its settings: shown by name, compared by identity."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fewtokens.core.identity import identity
from fewtokens.data.footage import Footage
from fewtokens.data.listing import Listing
from fewtokens.encoders.weights import hash_files

# (name for the user, identity for comparison); a list of two if it comes from a file.
Input = tuple[str, str]


def plain_input(value: object) -> Input:
    """An input whose name is its identity, such as a number."""
    return str(value), str(value)


def listing_input(listing: Listing) -> Input:
    """Labeled files, identified by path, size, modification time and label."""
    items = listing.items
    details = (f"{item.labels} {item.start} {item.end} {item.member} {item.offset} {item.size}" for item in items)
    return files_input([item.path for item in items], [*listing.classes, *details])


def footage_input(items: Sequence[Footage]) -> Input:
    """Videos, identified by path, size, modification time and part."""
    return files_input([item.path for item in items], [f"{item.start} {item.end} {item.members}" for item in items])


def files_input(paths: Sequence[str | Path], extra: Iterable[str] = ()) -> Input:
    """Files and further text about them; see `fewtokens.core.identity.identity`."""
    folder = os.path.commonpath([os.path.abspath(path) for path in paths])
    return f"{folder} ({len(paths)} item{'s' * (len(paths) != 1)})", identity(paths, extra)


def folder_input(name: str | Path) -> Input:
    """A saved model, identified by its weights if it is a folder or a file, otherwise by its name."""
    path = Path(name)
    weights = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path] * path.is_file()
    return str(name), hash_files(weights) if weights else str(name)


def check_inputs(before: Mapping[str, Sequence[str]] | None, now: Mapping[str, Input], out: Path) -> list[str]:
    """Compares the inputs of a checkpoint with those of the run that resumes from it.

    Returns:
        Messages for the user.

    Raises:
        ValueError: they differ; the message names both.
    """
    if not now:
        return []
    if not before:
        return [
            f"{out}: this run was started by an older version, which did not record its data; resuming on the "
            "assumption that the data is the same"
        ]
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old is not None and len(old) != 2:
            raise ValueError(f"{out}: its checkpoint records {name} in an unknown format; use --fresh")
        if old is None or new is None or old[1] != new[1]:
            first, second = (entry[0] if entry else "none" for entry in (old, new))
            difference = (
                f"a run in which {name} is {first or 'empty'}, now {second or 'empty'}"
                if first != second
                else f"a run in which {name} is {first}, which has changed since: a file was added, removed or modified"
            )
            raise ValueError(f"{out}: contains {difference}; use another --out, or --fresh")
    return []
