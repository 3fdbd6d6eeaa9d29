"""`run_shard`: the one function that a job runs, pure and idempotent, whatever engine calls it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, Protocol

from fewtokens.core.ahead import Check, map_ahead, reading_threads
from fewtokens.core.files import DISK_FULL_ERRORS
from fewtokens.core.tokens import Tokens
from fewtokens.jobs.folder import Numbers, Row, Shard, Source, file_of, write_rows
from fewtokens.jobs.formats import Format
from fewtokens.jobs.records import Record
from fewtokens.jobs.store import Store


class Work(Protocol):
    """What a job does with each video; an instance is pickled and sent to the processes that do it."""

    def read(self, location: str, check: Check) -> Any:
        """Decodes a video, in a thread or on another machine; `check` may raise an error to end it.

        Raises:
            ValueError, OSError: the video cannot be read.
        """

    def load(self) -> Reduce:
        """Loads what turns decoded videos into tokens; called once per process."""


class Reduce(Protocol):
    """Turns decoded videos into tokens."""

    def batches(self, videos: Iterable[Any]) -> Iterator[list[Any]]:
        """Groups consecutive videos that are encoded together; depends on nothing but the videos."""

    def __call__(self, videos: Sequence[Any]) -> list[Any]:
        """Returns the tokens of each video, B=1, on the CPU, with everything that its file says in `meta`.

        The format of a job may write something else than `Tokens`: with `meta`, and with `numbers`, the columns of the
        manifest, such as {"frames": 300}.

        Raises:
            ValueError: a video cannot be encoded.
        """


# Decodes videos in order, ahead of the caller.
Ahead = Callable[[Sequence[Source]], AbstractContextManager[Iterator["Decoded"]]]


@dataclass(frozen=True)
class Task:
    """What all shards of a job have in common.

    Attributes:
        store: output folder.
        format: how the result is written.
        work: what is done.
    """

    store: Store
    format: Format
    work: Work


class Decoded(NamedTuple):
    """A video after decoding, or what prevented it.

    Attributes:
        source: which video.
        video: the result of `Work.read`, or None.
        error: one line, or None.
        seconds: time of decoding.
    """

    source: Source
    video: Any
    error: str | None
    seconds: float


def decode(work: Work, source: Source, check: Check) -> Decoded:
    """Decodes a video; an error becomes a part of the result, except that of a full disk."""
    start = time.perf_counter()
    try:
        video, error = work.read(source.location, check), None
    except (ValueError, OSError) as problem:
        if is_disk_full(problem):
            raise
        video, error = None, one_line(problem)
    return Decoded(source, video, error, time.perf_counter() - start)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error is about the disk, not about a video."""
    return isinstance(error, OSError) and error.errno in DISK_FULL_ERRORS


def one_line(error: BaseException) -> str:
    """The message of an error in one line."""
    return " ".join(str(error).split())


def in_threads(work: Work, broken: Mapping[str, str] | None = None) -> Ahead:
    """Decoding in threads of this process, except for videos whose error is known; `broken` has it by location."""

    def read(source: Source, check: Check) -> Decoded:
        error = (broken or {}).get(source.location)
        return decode(work, source, check) if error is None else Decoded(source, None, error, 0.0)

    return lambda sources: map_ahead(read, sources, reading_threads())


def run_shard(shard: Shard, task: Task, reduce: Reduce, ahead: Ahead | None = None) -> list[Row]:
    """Writes the tokens of the videos of a shard, then its part of the manifest, which marks it as finished.

    The files depend on the shard, the work and the format only: they are the same however often and wherever this runs,
    except for the times in the manifest. A video that cannot be read or encoded is a row with an error.

    Args:
        shard: the videos.
        task: what is done with them.
        reduce: from `Work.load`.
        ahead: how videos are decoded ahead of the encoder. Default: in threads.

    Returns:
        The rows of the manifest.

    Raises:
        OSError: the disk is full, or the folder is not writable; nothing of the shard appears in the manifest.
    """
    form, store = task.format, task.store
    rows: list[Row] = []
    with closing(_records(shard, task, reduce, ahead or in_threads(task.work), rows)) as records:
        # If every video failed, there is no file.
        for first in records:
            name = file_of(form, shard, first.key)
            with store.writing(name) as path:
                form.write(path, [first] if form.per_video else chain([first], records), store.path(name))
    # A run that was killed may have written what cannot be read any more.
    failed = [str(row["key"]) for row in rows if row["error"] is not None]
    if form.per_video:
        for key in failed:
            store.remove(file_of(form, shard, key))
    elif failed and len(failed) == len(shard.sources):
        store.remove(file_of(form, shard, failed[0]))
    order = {source.location: number for number, source in enumerate(shard.sources)}
    rows.sort(key=lambda row: order[row["source"]])
    write_rows(store, shard.part, rows)
    return rows


def _records(shard: Shard, task: Task, reduce: Reduce, ahead: Ahead, rows: list[Row]) -> Generator[Record, None, None]:
    """Yields the tokens of each video of a shard, and adds a row for each."""

    def readable(videos: Iterable[Decoded]) -> Iterator[Any]:
        for each in videos:
            if each.error is not None:
                rows.append({"key": each.source.key, "source": each.source.location, "shard": shard.number,
                             "error": each.error})  # fmt: skip
            else:
                waiting.append(each)
                yield each.video

    waiting: list[Decoded] = []
    with ahead(shard.sources) as videos:
        for batch in reduce.batches(readable(videos)):
            group = [waiting.pop(0) for _ in batch]
            start = time.perf_counter()
            results = _reduce(reduce, batch)
            seconds = (time.perf_counter() - start) / len(group)
            for each, result in zip(group, results, strict=True):
                source = each.source
                row: Row = {"key": source.key, "source": source.location, "shard": shard.number, "error": None}
                if isinstance(result, str):
                    rows.append({**row, "error": result})
                    continue
                identity = result.meta["source"]
                yield Record(source.key, result)
                rows.append({
                    **row,
                    "file": file_of(task.format, shard, source.key),
                    "bytes": identity["bytes"],
                    "mtime_ns": identity["mtime_ns"],
                    **_numbers(result),
                    "seconds": round(each.seconds + seconds, 4),
                })  # fmt: skip


def _numbers(result: Any) -> Numbers:
    if isinstance(result, Tokens):
        return {"frames": result.grid.T, "cells": result.grid.cells, "tokens": int(result.count[0])}
    return result.numbers


def _reduce(reduce: Reduce, batch: Sequence[Any]) -> list[Any]:
    """Returns the result of each video, or its error; if a batch fails, each video is tried alone."""
    try:
        return list(reduce(batch))
    except ValueError as error:
        if len(batch) == 1:
            return [one_line(error)]
    return [result for video in batch for result in _reduce(reduce, [video])]


def threads_per_process(processes: int) -> int:
    """Returns the number of threads of each of several processes that share this machine."""
    return max(1, (os.cpu_count() or 1) // processes)
