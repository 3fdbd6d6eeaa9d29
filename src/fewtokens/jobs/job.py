"""`run_job`: plans the shards of a job, runs those that are not finished, and completes the manifest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

from fewtokens.core import files
from fewtokens.core.identity import describe_source
from fewtokens.jobs.engines import Engine, run_local
from fewtokens.jobs.folder import Plan, Row, check_new, check_settings, finish, make_plan
from fewtokens.jobs.formats import FORMATS, Format
from fewtokens.jobs.ray_engine import run_ray
from fewtokens.jobs.shard import Task, Work
from fewtokens.jobs.sources import is_url, whole_file
from fewtokens.jobs.store import Store

PER_SHARD, _SHARDS = 100, 32


@dataclass(frozen=True)
class Report:
    """The result of a job.

    Attributes:
        rows: the manifest, a row per video.
        shards: number of shards.
        new: number of videos that this run finished; the others were finished before.
    """

    rows: tuple[Row, ...]
    shards: int
    new: int


def run_job(
    sources: Sequence[tuple[str, str]],
    work: Work,
    settings: Mapping[str, Any],
    target: str,
    *,
    form: Format | None = None,
    engine: str = "local",
    per_shard: int | None = None,
    workers: int | None = None,
    address: str | None = None,
    retry: bool = False,
    progress: Callable[[int, int], None] | None = None,
    report: Callable[[Row], None] | None = None,
) -> Report:
    """Turns many videos into tokens. A job that was stopped, at any moment, resumes with the same call.

    Args:
        sources: from `find_sources`.
        work: what is done with each video.
        settings: plain values that determine the result; "format" is one of `FORMATS`, or the name of `form`. A folder
            holds one job.
        target: output folder, or a URI for fsspec.
        form: how the result is written. Default: the one that "format" names.
        engine: "local" or "ray".
        per_shard: videos per shard. Default: 100; but in a new job that does not write files of many videos, at most
            enough for 32 shards, so that many processes can share it.
        workers, address: see `run_local` and `run_ray`.
        retry: whether videos that failed in an earlier run are tried again.
        progress: called with the number of videos finished and in total.
        report: called with the row of each video of this run.

    Raises:
        ValueError: the folder holds a job with other settings, one that runs now, or files that a new one would
            replace; a finished video has changed; or the engine fails.
        OSError: the disk is full, or the folder is not writable; finished shards are kept.
    """
    form = form or FORMATS[settings["format"]]
    if form.package is not None and find_spec(form.package) is None:
        raise ValueError(
            f"--format {settings['format']} requires {form.package}; install it with pip install 'fewtokens[jobs]'"
        )
    store = Store(target)
    run: Engine = run_local if engine == "local" else partial(run_ray, address=address)
    with store.locked():
        _sweep(store)
        check_new(store, sources, form)
        check_settings(store, settings)
        per_shard = per_shard or _per_shard(form, len(sources))
        plan = make_plan(store, sources, per_shard=per_shard, plain_keys=form.plain_keys, retry=retry)
        _check_unchanged(store, plan)
        total = len({source.location for shard in plan.shards for source in shard.sources})
        new = 0
        for rows in run(plan.remaining, Task(store, form, work), workers):
            plan.rows |= {row["source"]: row for row in rows}
            new += len(rows)
            for row in rows if report is not None else ():
                report(row)  # type: ignore[misc]
            if progress is not None:
                progress(len(plan.rows), total)
        order = [source.location for shard in plan.shards for source in shard.sources]
        table = [plan.rows[location] for location in dict.fromkeys(order)]
        _sweep(store)
        finish(store, settings, table)
    return Report(tuple(table), len(plan.shards), new)


def _per_shard(form: Format, videos: int) -> int:
    of_many = form in FORMATS.values() and not form.per_video
    return PER_SHARD if of_many else max(1, min(PER_SHARD, math.ceil(videos / _SHARDS)))


def _sweep(store: Store) -> None:
    """Removes what killed processes left, of an earlier run or of this one."""
    for folder in ("", "shards", "data", "manifest") if store.is_local else ():
        files.sweep(store.path(folder) if folder else store.target)


def _check_unchanged(store: Store, plan: Plan) -> None:
    """Raises a ValueError if a finished video has changed since. One that was moved or removed stays finished."""
    for row in plan.rows.values():
        if row["error"] is not None or is_url(row["source"]):
            continue
        try:
            now = describe_source(whole_file(row["source"]))
        except OSError:
            continue
        if any(now[name] != row.get(name) for name in ("bytes", "mtime_ns")):
            raise ValueError(
                f"{store}: {row['source']} has changed since it was processed; give another --out, or restore it"
            )
