"""What a run is made from beside its settings: told to the user by name, told apart by its identity."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fewtokens.core.identity import identity
from fewtokens.data.footage import Footage
from fewtokens.data.listing import Listing
from fewtokens.encoders.weights import hash_of

# (what the user calls it, what is compared). A list of two where it comes from a file.
Input = tuple[str, str]


def plain_input(value: object) -> Input:
    """Something that is what it is called: a name, a number."""
    return str(value), str(value)


def listing_input(listing: Listing) -> Input:
    """Labelled files, by place, size, time of change and label."""
    items = listing.items
    told = (f"{item.labels} {item.start} {item.end} {item.member} {item.offset} {item.size}" for item in items)
    return files_input([item.path for item in items], [*listing.classes, *told])


def footage_input(items: Sequence[Footage]) -> Input:
    """Videos, by place, size, time of change and part."""
    return files_input([item.path for item in items], [f"{item.start} {item.end} {item.members}" for item in items])


def files_input(paths: Sequence[str | Path], extra: Iterable[str] = ()) -> Input:
    """Files and what else is said of each; see `fewtokens.core.identity.identity`."""
    place = os.path.commonpath([os.path.abspath(path) for path in paths])
    return f"{place} ({len(paths)} item{'s' * (len(paths) != 1)})", identity(paths, extra)


def folder_input(name: str | Path) -> Input:
    """A saved model: by the content of its weights where it is a folder or a file, by its name otherwise."""
    path = Path(name)
    weights = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path] * path.is_file()
    return str(name), hash_of(weights) if weights else str(name)


def check_inputs(before: Mapping[str, Sequence[str]] | None, now: Mapping[str, Input], out: Path) -> list[str]:
    """Compares what a checkpoint was made from with what the run is to go on with.

    Returns:
        what the user should know of it.

    Raises:
        ValueError: they differ; names both.
    """
    if not now:
        return []
    if not before:
        return [
            f"{out}: the run there was begun by an older fewtokens, which did not note its data; it goes on, and that "
            "the data is the same is taken on trust"
        ]
    for name in sorted(before.keys() | now.keys()):
        told, asked = before.get(name), now.get(name)
        if told is not None and len(told) != 2:
            raise ValueError(f"{out}: its checkpoint names {name} in another form; take --fresh")
        if told is None or asked is None or told[1] != asked[1]:
            first, second = (each[0] if each else "none" for each in (told, asked))
            differ = (
                f"a run with another {name}: {first} there, {second} here"
                if first != second
                else f"a run with {name} {first}, which has changed since: a file was added, removed or written again"
            )
            raise ValueError(f"{out}: holds {differ}; take another --out, or --fresh")
    return []
