"""`fewtokens bench` as a job, see `fewtokens.jobs`: processes measure clips, then their rows are merged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from fewtokens.cli.bench_clips import score_row, thumbnails
from fewtokens.cli.bench_report import describe_machine, print_report, write_report
from fewtokens.cli.console import fail
from fewtokens.cli.jobs import exit_with_failures, failures, run_videos_job
from fewtokens.cli.options import EncoderOptions, JobOptions, ReadOptions, RunOptions, SelectOptions
from fewtokens.cli.pipelines import read_video, within_part
from fewtokens.cli.tables import print_json
from fewtokens.cli.tokenize_job import load_selection

if TYPE_CHECKING:
    from fewtokens.core.encoder import Encoder
    from fewtokens.evaluation.bench import Item
    from fewtokens.jobs import Format, Record, Report

FORMAT = "bench rows"


@lru_cache(maxsize=1)
def load(encoding: EncoderOptions, run: RunOptions) -> Encoder:
    """Returns the encoder, loaded once per process."""
    from fewtokens.encoders import load_encoder

    return load_encoder(encoding.encoder, device=run.device, dtype=encoding.dtype, batch=encoding.batch)


class _Clip(NamedTuple):
    item: Item
    # the frames that the selector chooses, if there is one
    selected: Item | None
    source: dict[str, Any]


class _Rows(NamedTuple):
    """The rows of a clip, with what a job asks of a result."""

    rows: list[dict[str, Any]]
    unreached: list[str]
    numbers: dict[str, int]
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class BenchWork:
    """What `bench` does with each video, a `fewtokens.jobs.Work`.

    Attributes:
        encoding, run, selecting, question: options of the command.
        reading: frames and size.
        specs, budgets: the methods, and at which budgets.
        shown: locations of the clips on the page.
    """

    encoding: EncoderOptions
    run: RunOptions
    reading: ReadOptions
    selecting: SelectOptions
    question: str | None
    specs: tuple[str, ...]
    budgets: tuple[float | int | str, ...]
    shown: tuple[str, ...]

    def read(self, location: str, check: Callable[..., None]) -> _Clip:
        """Decodes the frames of a video; see `fewtokens.jobs.Work`."""
        from fewtokens.evaluation.bench import Item
        from fewtokens.jobs.sources import local_source, split_part

        whole, part = split_part(location)
        reading = within_part(self.reading, part)
        selects = load_selection(self.selecting, self.question, self.run)
        selected = None
        with local_source(whole, check) as (path, source):
            if selects:
                video = read_video(path, replace(reading, frames=None), check, selects)
                selected = Item(location, video.frames, video.times)
                reading = replace(reading, frames=len(video.frames))
            video = read_video(path, reading, check)
        return _Clip(Item(location, video.frames, video.times), selected, source)

    def load(self) -> _Measure:
        """Loads the encoder; see `fewtokens.jobs.Work`."""
        return _Measure(self)


class _Measure:
    """Measures one clip after another, a `fewtokens.jobs.Reduce`; a row has no times."""

    def __init__(self, work: BenchWork) -> None:
        from fewtokens.encoders import pick_device

        self.work = work
        self.encoder = load(work.encoding, work.run)
        self.device = pick_device(work.run.device)
        selects = load_selection(work.selecting, work.question, work.run)
        self.select = selects["select"].spec if selects else None

    def batches(self, videos: Iterable[_Clip]) -> Iterator[list[_Clip]]:
        return ([video] for video in videos)

    def __call__(self, videos: Sequence[_Clip]) -> list[_Rows]:
        return [self._measure(clip) for clip in videos]

    def _measure(self, clip: _Clip) -> _Rows:
        from fewtokens.evaluation.bench import encode, jobs

        work, (item, chosen, source) = self.work, clip
        encoded = encode(item, self.encoder, repeats=0)
        selected = None if chosen is None else encode(chosen, self.encoder, repeats=0)
        options = {"repeats": 0, "seed": work.run.seed, "shown": item.name in work.shown, "device": self.device}
        rows, unreached = [], []
        for job in jobs([item.name], work.specs, work.budgets, self.select):
            try:
                rows.append(score_row(job, encoded, selected, self.select, self.encoder, **options))
            except ValueError as error:  # the table has no entry
                unreached.append(f"{job[1]} at {job[2]}: {' '.join(str(error).split())}")
        grid = encoded.tokens.grid
        return _Rows(rows, unreached, {"frames": len(item.frames), "cells": grid.cells}, {"source": source})


def rows_format() -> Format:
    """Returns the format of the rows of a shard: a line of JSON per clip."""
    from fewtokens.jobs import Format

    return Format("shards/{shard:06}.jsonl", _write, plain_keys=True)


def _write(path: Path, records: Iterable[Record], label: str) -> int:
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for key, result in records:
            measured: Any = result
            rows = [{**row, "clip": key} for row in measured.rows]
            file.write(json.dumps({"key": key, "rows": rows, "unreached": measured.unreached}) + "\n")
            count += 1
    return count


class _Line(TypedDict):
    key: str
    rows: list[dict[str, Any]]
    unreached: list[str]


def run_bench_job(
    sources: Sequence[tuple[str, str]], target: Path, options: JobOptions, work: BenchWork, settings: dict[str, Any],
    measure: str, as_json: bool,
) -> None:  # fmt: skip
    """Measures clips in a job, then writes and prints the report of `bench`; exits with 1 if a clip failed."""
    from fewtokens.encoders import pick_device

    if re.match(r"\w{2,}:/", str(target)):
        raise ValueError(f"--out must be a folder, got the URI {target}")
    if (target / "settings.json").exists():
        raise ValueError(f"{target}: holds a run without --engine; leave it out to resume it, or give another --out")
    whole = {"format": FORMAT, **settings, "methods": work.specs, "budgets": work.budgets}
    report = run_videos_job(sources, str(target), options, work, whole, rows_format())
    rows = _merge(target, report)
    if not rows:
        raise ValueError(f"no clip could be read, so there is nothing to compare; see {target}/failed.jsonl")
    header = {
        "settings": settings,
        "machine": describe_machine(pick_device(work.run.device)),
        "sources": {
            row["key"]: {"path": row["source"], "bytes": row["bytes"], "mtime_ns": row["mtime_ns"]}
            for row in report.rows
            if row["error"] is None
        },
    }
    summary = write_report(target, header, rows, _pictures(work, report), measure)
    if as_json:
        print_json({
            "settings": settings, "summary": summary, "failed": failures(report), "page": str(target / "index.html"),
            "shards": report.shards, "new": report.new,
        })  # fmt: skip
    else:
        print_report(summary, target, measure)
    exit_with_failures(report, str(target))


def _merge(target: Path, report: Report) -> list[dict[str, Any]]:
    """Returns the rows of all clips in the order of the manifest, and prints which budgets were not reached."""
    from fewtokens.core.files import parse_json, read_text
    from fewtokens.core.plain import conform

    lines: dict[str, dict[str, _Line]] = {}
    rows: list[dict[str, Any]] = []
    for done in report.rows:
        if done["error"] is not None:
            continue
        name = done["file"]
        if name not in lines:
            path = target / name
            found = [conform(parse_json(line, str(path)), _Line, str(path)) for line in read_text(path).splitlines()]
            lines[name] = {line["key"]: line for line in found}
        line = lines[name].pop(done["key"], None)
        if line is None:
            raise ValueError(f"{target / name}: has no rows of {done['key']}; give another --out")
        rows += line["rows"]
        for text in line["unreached"]:
            fail(f"{done['key']}, {text}")
    return rows


def _pictures(work: BenchWork, report: Report) -> dict[str, Any]:
    """Returns the frames of the clips on the page, which are read again."""
    images = {}
    for row in report.rows:
        if row["source"] in work.shown and row["error"] is None:
            try:
                images[row["key"]] = thumbnails(work.read(row["source"], lambda *_: None).item)
            except (ValueError, OSError) as error:
                fail(error)
    return images
