"""`export`: copies tokens from one format to another."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path

from fewtokens.core.names import with_digest
from fewtokens.jobs.folder import Shard, file_of, unfinished_shards
from fewtokens.jobs.formats import CARD, FORMATS, UNFINISHED, find_files, read_records
from fewtokens.jobs.job import PER_SHARD
from fewtokens.jobs.records import Record, make_keys
from fewtokens.jobs.store import Store


def export(
    source: str | Path,
    target: str,
    format: str,
    *,
    per_shard: int = PER_SHARD,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Copies tokens to another format. Values and headers are equal, of whatever format they come.

    An export that was killed is marked until the same call has finished it. Warns if the source is a job that has not
    finished.

    Args:
        source: a file or folder in any of the formats.
        target: output folder, new or empty; or a URI for fsspec.
        format: one of `FORMATS`.
        per_shard: videos per file.
        progress: called with the number of videos written.

    Returns:
        The number of videos.

    Raises:
        ValueError: the source has no tokens or is damaged, two of its videos have one key, or the target is not empty.
        OSError: the disk is full, or the folder is not writable.
    """
    form, store = FORMATS[format], Store(target)
    paths = find_files(Path(source))
    if (left := unfinished_shards(Store(str(source)))) > 0:
        warnings.warn(f"{source}: a job that has not finished; {left} shards are missing", stacklevel=2)
    records = _rename(paths, plain=form.plain_keys)
    number = count = 0
    arguments = json.dumps({"source": os.path.abspath(source), "format": format, "per_shard": per_shard})
    with store.locked():
        # One that was killed writes the same files again.
        if store.read(UNFINISHED) != arguments and any(store.names(name) for name in ("", "shards", "data")):
            raise ValueError(f"{target}: not empty; give a new folder")
        store.write(UNFINISHED, arguments)
        while (first := next(records, None)) is not None:
            group = chain([first], islice(records, (1 if form.per_video else per_shard) - 1))
            name = file_of(form, Shard(number, ()), first.key)
            with store.writing(name) as path:
                count += form.write(path, group, store.path(name))
            number += 1
            if progress is not None:
                progress(count)
        if format == "hf":
            store.write("README.md", CARD)
        store.remove(UNFINISHED)
    return count


def _rename(paths: list[Path], *, plain: bool) -> Iterator[Record]:
    """Yields the videos of files with keys that the format accepts and that never lead out of a folder."""
    keys, taken = set[str](), set[str]()
    for path in paths:
        for record in read_records(path):
            if record.key in keys:
                raise ValueError(f"{path}: a second video {record.key!r}; export the files separately")
            keys.add(record.key)
            # A key is a name, whose dots do not begin a suffix.
            (key,) = make_keys([Path(f"{record.key}.video")], plain=plain)
            if key.casefold() in taken:
                key = with_digest(key, Path("/", record.key))
            taken.add(key.casefold())
            yield Record(key, record.tokens)
