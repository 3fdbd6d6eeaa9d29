"""The files of a job: its settings, its plan of shards, and the manifest with a row per video."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from fewtokens.core.files import parse_json
from fewtokens.core.identity import rename_encoder_keys
from fewtokens.core.names import separate
from fewtokens.core.plain import conform
from fewtokens.jobs.formats import CARD, Format
from fewtokens.jobs.records import make_keys
from fewtokens.jobs.store import Store

SETTINGS, PLAN, PARTS, MANIFEST, FAILED = "job.json", "plan.jsonl", "manifest", "manifest.parquet", "failed.jsonl"


class Source(NamedTuple):
    """A video of a job.

    Attributes:
        key: its name in the output.
        location: absolute path, or URL.
    """

    key: str
    location: str


class Shard(NamedTuple):
    """Videos that are processed together; with most formats, those of one file.

    Attributes:
        number: from 0.
        sources: the videos.
    """

    number: int
    sources: tuple[Source, ...]

    @property
    def part(self) -> str:
        """Name of its part of the manifest, which exists once the shard is finished."""
        return f"{PARTS}/{self.number:06}.jsonl"


class Numbers(TypedDict, total=False):
    """The numbers of a row; which ones depends on what the job writes."""

    file: str
    bytes: int
    mtime_ns: int
    frames: int
    cells: int
    tokens: int
    seconds: float


class Row(Numbers):
    """A row of the manifest; a video that failed has no file and no numbers."""

    key: str
    source: str
    shard: int
    error: str | None


class _Planned(TypedDict):
    shard: int
    sources: list[list[str]]


@dataclass
class Plan:
    """The shards of a job, and the latest row of each video in the manifest.

    Attributes:
        shards: all shards, in order.
        finished: numbers of those in the manifest.
        rows: by location; of a video that was tried again, the last one.
    """

    shards: list[Shard]
    finished: set[int]
    rows: dict[str, Row]

    @property
    def remaining(self) -> list[Shard]:
        """The shards that are not finished."""
        return [shard for shard in self.shards if shard.number not in self.finished]

    @property
    def failed(self) -> list[Row]:
        """The rows of videos that failed, in the order of their shards."""
        return [row for row in self.rows.values() if row["error"] is not None]


def check_settings(store: Store, settings: Mapping[str, Any]) -> None:
    """Writes the settings of a new job, or compares them with those of the job in the folder.

    Raises:
        ValueError: they differ; names up to three settings, with both values if they are short.
    """
    plain = json.loads(json.dumps(settings))
    text = store.read(SETTINGS)
    if text is None:
        if store.names(PARTS):
            raise ValueError(f"{store}: has the manifest of a job but no {SETTINGS}; give another --out")
        store.write(SETTINGS, json.dumps(plain, indent=2) + "\n")
        return
    label = store.path(SETTINGS)
    before = rename_encoder_keys(conform(parse_json(text, label), dict[str, Any], label))
    names = [name for name in {**plain, **before} if before.get(name) != plain.get(name)]
    if names:
        changes = []
        for name in names[:3]:
            then, now = json.dumps(before.get(name)), json.dumps(plain.get(name))
            changes.append(f"{name} ({then}, now {now})" if len(then) + len(now) < 300 else name)
        raise ValueError(f"{store}: contains a job with other settings: {', '.join(changes)}; give another --out")


def keys_of(sources: Mapping[str, Path | str], taken: Collection[str] = (), *, plain: bool) -> list[str]:
    """Returns a key for each video, {location: path or URL as given}; the other arguments are those of `make_keys`."""
    names = make_keys([Path(path) for path in sources.values()], taken, plain=plain)
    return separate(names, list(sources), taken)


def check_new(store: Store, sources: Sequence[tuple[Path | str, str]], form: Format) -> None:
    """Raises a ValueError if a new job would replace a file of its folder, such as one of the command without a job."""
    if store.read(SETTINGS) is not None:
        return
    if not form.per_video:
        folder = form.pattern.partition("/")[0]
        if store.names(folder):
            raise ValueError(
                f"{store}: {folder}/ has files that are not of a job, such as an export; give another --out"
            )
        return
    found = set(store.names(""))
    for key in keys_of({location: path for path, location in sources}, plain=form.plain_keys):
        if (name := form.pattern.format(key=key)) in found:
            raise ValueError(f"{store}: {name} is not of a job, and would be replaced; give another --out")


def unfinished_shards(store: Store) -> int:
    """The number of shards of a job that are not in its manifest; 0 for a folder without a job."""
    plan = store.read(PLAN)
    return 0 if plan is None else max(0, len(plan.splitlines()) - len(store.names(PARTS)))


def make_plan(
    store: Store, sources: Sequence[tuple[Path | str, str]], *, per_shard: int, plain_keys: bool, retry: bool
) -> Plan:
    """Reads the plan and the manifest of a job, and adds shards of new videos.

    Shards are only added, never changed: a video of an earlier run stays in its shard, and a video that is tried again
    gets a new one.

    Args:
        store: the folder of the job.
        sources: (path or URL as given, which names the result, and location) of each video.
        per_shard: videos per new shard.
        plain_keys: see `make_keys`.
        retry: whether videos that failed are tried again.

    Raises:
        ValueError: the plan or the manifest is damaged, or a finished video has changed since.
    """
    shards = _read_plan(store)
    finished, rows = _read_rows(store, {shard.number for shard in shards})
    keys = {source.location: source.key for shard in shards for source in shard.sources}
    new = {location: path for path, location in sources if location not in keys}
    names = keys_of(new, keys.values(), plain=plain_keys)
    todo = [Source(name, location) for name, location in zip(names, new, strict=True)]
    if retry:
        failed = [Source(row["key"], location) for location, row in rows.items() if row["error"] is not None]
        planned = {source.location for shard in shards if shard.number not in finished for source in shard.sources}
        todo = [source for source in failed if source.location not in planned] + todo
    start = len(shards)
    groups = [tuple(todo[first : first + per_shard]) for first in range(0, len(todo), per_shard)]
    shards += [Shard(start + number, group) for number, group in enumerate(groups)]
    if groups:
        lines = ({"shard": shard.number, "sources": shard.sources} for shard in shards)
        store.write(PLAN, "".join(json.dumps(line) + "\n" for line in lines))
    return Plan(shards, finished, rows)


def _read_plan(store: Store) -> list[Shard]:
    shards: list[Shard] = []
    for planned in _read_lines(store, PLAN, _Planned):
        if planned["shard"] != len(shards) or any(len(source) != 2 for source in planned["sources"]):
            raise ValueError(f"{store.path(PLAN)}: damaged at shard {len(shards)}; give another --out")
        shards.append(Shard(planned["shard"], tuple(Source(*source) for source in planned["sources"])))
    return shards


def _read_rows(store: Store, numbers: set[int]) -> tuple[set[int], dict[str, Row]]:
    finished: set[int] = set()
    rows: dict[str, Row] = {}
    for name in store.names(PARTS):
        number = int(name.removesuffix(".jsonl")) if name.removesuffix(".jsonl").isdecimal() else -1
        if number not in numbers:
            raise ValueError(f"{store.path(PARTS)}/{name}: not a part of this job; give another --out")
        finished.add(number)
        for row in _read_lines(store, f"{PARTS}/{name}", Row):
            rows[row["source"]] = row
    return finished, rows


def _read_lines(store: Store, name: str, kind: Any) -> list[Any]:
    lines = (store.read(name) or "").split("\n")
    labels = (f"{store.path(name)}: line {number}" for number in range(1, len(lines) + 1))
    return [conform(parse_json(line, label), kind, label) for line, label in zip(lines, labels, strict=True) if line]


def write_rows(store: Store, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows as JSON Lines."""
    store.write(name, "".join(json.dumps(row) + "\n" for row in rows))


def finish(store: Store, settings: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Writes what is derived from the manifest: manifest.parquet if pyarrow is installed, failed.jsonl, a data card."""
    failed = [{"video": row["source"], "error": row["error"]} for row in rows if row["error"] is not None]
    if failed:
        write_rows(store, FAILED, failed)
    else:
        store.remove(FAILED)
    if settings["format"] == "hf":
        store.write("README.md", CARD)
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return
    texts, numbers = ("key", "source", "file", "error"), ("bytes", "mtime_ns", "frames", "cells", "tokens")
    columns: dict[str, Any] = {
        name: pyarrow.array([_text(row.get(name)) for row in rows], pyarrow.string()) for name in texts
    }
    columns["shard"] = pyarrow.array([row["shard"] for row in rows], pyarrow.int64())
    columns |= {name: pyarrow.array([row.get(name) for row in rows], pyarrow.int64()) for name in numbers}
    columns["seconds"] = pyarrow.array([row.get("seconds") for row in rows], pyarrow.float64())
    model = settings.get("encoder") or settings.get("tokenizer") or {}
    constants = {"spec": settings.get("spec"), "weights": model.get("fingerprint")}
    for name, value in constants.items():
        columns[name] = pyarrow.array([value] * len(rows), pyarrow.string())
    with store.writing(MANIFEST) as path:
        parquet.write_table(pyarrow.table(columns), path)


def _text(value: Any) -> str | None:
    """A text as valid Unicode; bytes of file names that are not UTF-8 become escapes."""
    return None if value is None else str(value).encode("utf-8", "backslashreplace").decode()


def file_of(form: Format, shard: Shard, key: str) -> str:
    """Returns the path in the output folder of the file that has the tokens of a video."""
    return form.pattern.format(shard=shard.number, key=key)
