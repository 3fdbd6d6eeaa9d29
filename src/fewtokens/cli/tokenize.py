"""`fewtokens tokenize`: turns videos into files of few tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.batch import Batch
from fewtokens.cli.command import Mode, verb
from fewtokens.cli.console import log, note
from fewtokens.cli.errors import check_exists
from fewtokens.cli.jobs import JOB, is_job, job_modes, report_job, run_videos_job, sources_of
from fewtokens.cli.options import (
    INPUT,
    OUTPUT,
    EncoderOptions,
    FormatOption,
    JobOptions,
    JsonOption,
    MethodOptions,
    OverwriteOption,
    ReadOptions,
    RunOptions,
    SelectOptions,
    VideosArgument,
)
from fewtokens.cli.pipelines import (
    PATCHES,
    check_reading,
    current_names,
    made_with,
    make_pipeline,
    plain_selection,
    read_video,
    selection_of,
    with_defaults,
)
from fewtokens.cli.progress import progress
from fewtokens.cli.resume import check_request, check_source, report_damaged, source_now, token_files
from fewtokens.cli.tokenize_chunks import tokenize_chunks
from fewtokens.cli.tokenize_job import TokenizeWork

if TYPE_CHECKING:
    from fewtokens.core.ahead import Check
    from fewtokens.core.pipeline import Pipeline
    from fewtokens.core.tokens import Tokens


@verb(
    'fewtokens tokenize clip.mp4 --with "tome(keep=0.1)" --out clip.safetensors',
    "fewtokens tokenize videos/*.mp4 --encoder facebook/dinov2-small --with kmeans --keep 32 --out tokens/",
    "fewtokens tokenize long.mp4 --chunked --fps 2 --with rlt --out long/",
    'fewtokens tokenize film.mp4 --select "scene_changes(keep=32)" --with tome --out film.safetensors',
    'fewtokens tokenize archive/ --with "tome(keep=0.1)" --engine ray --format webdataset --out tokens/',
    'fewtokens tokenize film.mp4 --select aks --question "Who opens it?" --scorer clip:models/clip --out film/',
    modes=(
        Mode("whole", lambda values: not values["chunked"], ("chunk", "events"), "require --chunked"),
        Mode(
            "chunked", lambda values: values["chunked"], ("frames",),
            "has no effect with --chunked; use --fps, or neither for every frame",
        ),
        Mode(
            "selecting", lambda values: values["select"] is not None, ("frames", "fps", "chunked"),
            "cannot be combined with --select",
        ),
        Mode(
            "not selecting", lambda values: values["select"] is None, ("question", "scorer", "near"),
            "require --select",
        ),
        PATCHES,
        *job_modes(("chunked", "overwrite"), f"{JOB}, --format)", is_job),
    ),
)  # fmt: skip
def tokenize(
    videos: VideosArgument,
    target: Annotated[
        str,
        typer.Option(
            "--out",
            metavar="PATH",
            help="Output .safetensors file (one video), or output folder; of a job also a URI such as s3://bucket/tokens.",
            rich_help_panel=OUTPUT,
        ),
    ],
    reading: ReadOptions,
    encoding: EncoderOptions,
    run: RunOptions,
    selecting: SelectOptions = SelectOptions(),
    question: Annotated[
        str | None,
        typer.Option("--question", help="Question by which --select selects frames.", rich_help_panel=INPUT),
    ] = None,
    method: MethodOptions = MethodOptions(spec="tome"),
    chunked: Annotated[
        bool,
        typer.Option(
            "--chunked",
            help="Process in chunks with constant memory (causal methods only); writes one folder per video.",
            rich_help_panel=INPUT,
        ),
    ] = False,
    chunk: Annotated[
        int, typer.Option("--chunk", min=1, help="With --chunked: frames per chunk.", rich_help_panel=INPUT)
    ] = 32,
    events: Annotated[
        float,
        typer.Option(
            "--events",
            metavar="Q",
            help="With --chunked: fraction of frames reported as scene changes.",
            rich_help_panel=OUTPUT,
        ),
    ] = 0.1,
    jobs: JobOptions = JobOptions(),
    format: FormatOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Turn videos into few tokens, one safetensors file per video.

    Existing outputs are skipped if they were made from the same video, and are an error if not; damaged files are
    written again. If one of several videos cannot be read, the others are still processed; it is listed in
    failed.jsonl in the output folder, and the exit code is 1.

    With --chunked, a video of any length is read in chunks. Each chunk is written to a file in a folder (load them with
    fewtokens.core.streaming.load), and times of scene changes are printed.

    A list (.txt, a path or URL per line), a folder of videos or a pattern in quotes is a job: its videos are processed
    in shards by several processes or a Ray cluster, and manifest.parquet in the output folder has a row per video. The
    same command resumes a job; videos that failed are tried again only with --retry.
    """
    check_reading(reading)
    if is_job({"videos": videos, "engine": jobs.engine, "format": format}):
        work = TokenizeWork(method, encoding, run, reading, selecting, question)
        settings = {"format": format or "safetensors", **work.settings()}
        report_job(
            run_videos_job(sources_of(videos), target, jobs, work, settings),
            target,
            settings["format"],
            ("cells", "tokens"),
            as_json,
        )
        return
    out = Path(target)
    tasks = token_files(videos, out, chunked)
    single = len(tasks) == 1
    if single:
        check_exists(tasks[0][0])
    selects = selection_of(selecting, question, run)
    pipeline = make_pipeline(method, encoding, run)
    from fewtokens.core import files

    chunk_reading: dict[str, Any] = asdict(reading) | {"chunk": chunk, "events": events}
    del chunk_reading["frames"]
    files.sweep(tasks[0][1].parent)
    batch = Batch(len(tasks), "video", out)
    assert pipeline.encoder is not None
    unit = "videos" if not single else "seconds of video" if chunked else "frames"
    with progress(unit, None if single else len(tasks)) as advance, ExitStack() as threads:
        if single:
            pipeline.encoder.progress = advance
        results: Iterator[Callable[[], dict[str, Any]]]
        if chunked:
            report = advance if single else None
            results = (
                partial(tokenize_chunks, pipeline, video, path, chunk_reading, run.seed, overwrite, report)
                for video, path in tasks
            )
        else:
            results = threads.enter_context(_tokenize_ahead(pipeline, tasks, reading, selects, run.seed, overwrite))
        for number, ((video, _), result) in enumerate(zip(tasks, results, strict=True)):
            try:
                row = result()
            except (ValueError, OSError) as error:
                batch.fail(video, error)
            else:
                minimum = row.pop("minimum", None)
                batch.done.append(row)
                if not as_json:
                    _print_row(row)
                if minimum:
                    note("note:", minimum)
            if not single:
                advance(number + 1)
    batch.finish(as_json)


@contextmanager
def _tokenize_ahead(
    pipeline: Pipeline,
    jobs: Sequence[tuple[Path, Path]],
    reading: ReadOptions,
    selects: dict[str, Any],
    seed: int,
    overwrite: bool,
) -> Iterator[Iterator[Callable[[], dict[str, Any]]]]:
    """Tokenizes videos: while one is encoded and reduced, the next ones are read and the last one is saved.

    Yields:
        An iterator over functions, one per video, that return its entry in the report or raise its error.
    """
    from fewtokens.core.ahead import map_ahead, reading_threads

    request = {
        **made_with(pipeline),
        "reading": asdict(reading) | plain_selection(selects), "seed": seed,
    }  # fmt: skip
    tasks = (_Task(video, path, reading, selects, request, overwrite) for video, path in jobs)
    with (
        map_ahead(_Task.read, tasks, reading_threads()) as read,
        map_ahead(_Task.save, (task.reduce(pipeline) for task in read), 1) as saved,
    ):
        yield (task.result for task in saved)


def _step(function: Callable[..., None]) -> Callable[..., _Task]:
    """Turns a method of `_Task` into one that measures its time, keeps its error, and does nothing after the end."""

    def run(task: _Task, argument: Any) -> _Task:
        if task.row is None and task.error is None:
            start = time.perf_counter()
            try:
                function(task, argument)
            except (ValueError, OSError) as error:
                task.error = error
            task.seconds += time.perf_counter() - start
        return task

    return run


class _Task:
    """The way of one video to its file, in steps that run in different threads; ends early at an error or a result."""

    def __init__(
        self,
        video: Path,
        path: Path,
        reading: ReadOptions,
        selects: dict[str, Any],
        request: dict[str, Any],
        overwrite: bool,
    ) -> None:
        self.video, self.path, self.reading, self.request, self.overwrite = video, path, reading, request, overwrite
        self.selects = selects
        self.row: dict[str, Any] | None = None
        self.error: Exception | None = None
        self.seconds = 0.0

    def result(self) -> dict[str, Any]:
        """Returns the entry of the video in the report, or raises its error."""
        if self.error is not None:
            raise self.error
        assert self.row is not None
        return self.row if self.row["skipped"] else self.row | {"seconds": round(self.seconds, 3)}

    @_step
    def read(self, check: Check) -> None:
        self.source = source_now(self.video)
        if self.path.exists() and not self.overwrite and (earlier := _meta(self.path)) is not None:
            check_source(self.path, earlier.get("source"), self.source, "give --overwrite, or another --out")
            if isinstance(earlier.get("reading"), dict):
                earlier = earlier | {"reading": with_defaults(earlier["reading"])}
            check_request(self.path, earlier, self.request | {"reading": with_defaults(self.request["reading"])})
            self.row = {"video": str(self.video), "out": str(self.path), "skipped": True}
        else:
            self.clip = read_video(self.video, self.reading, check, self.selects)

    @_step
    def reduce(self, pipeline: Pipeline) -> None:
        import torch

        with torch.inference_mode():
            self.tokens = pipeline(self.clip).to("cpu")
        self.minimum = _minimum(pipeline, self.tokens)

    @_step
    def save(self, _: Check) -> None:
        self.tokens.save(self.path, **self.request, source={**self.source, "name": self.clip.name})
        self.row = {
            "video": str(self.video),
            "out": str(self.path),
            "skipped": False,
            "frames": len(self.clip),
            "cells": self.tokens.grid.cells,
            "tokens": int(self.tokens.count[0]),
            "bytes": self.path.stat().st_size,
            "minimum": self.minimum,
        }


def _minimum(pipeline: Pipeline, tokens: Tokens) -> str | None:
    """Returns a note on the method whose minimum makes the result exceed its budget, or None."""
    from fewtokens.core.method import Method

    grid = tokens.grid
    for method in pipeline.methods:
        assert isinstance(method, Method)
        # The budget and the minimum of an encoder method are those of each frame.
        frames, part = (grid.T, grid.frame) if method.stage == "encoder" else (1, grid)
        if method.budget is None:
            continue
        minimum, requested = frames * method.min_count(part), frames * method.budget.count(part)
        if minimum > requested and int(tokens.count[0]) > requested:
            return f"{method.name} kept {minimum} tokens, more than the budget of {requested}: its minimum"
    return None


def _meta(path: Path) -> dict[str, Any] | None:
    """Returns the source and settings saved in a token file, or None if it is damaged."""
    from fewtokens.core import files
    from fewtokens.core.conversions import Header
    from fewtokens.core.plain import conform

    try:
        header = files.load_header(path, "tokens")
        try:
            meta = conform(header, Header, f"{path}: a damaged token file")["meta"]
        except ValueError as error:
            raise files.CorruptFileError(str(error)) from None
    except files.CorruptFileError as error:
        report_damaged(error)
        return None
    return meta | {"reading": current_names(meta["reading"])} if isinstance(meta.get("reading"), dict) else meta


def _print_row(row: dict[str, Any]) -> None:
    if row["skipped"]:
        log.print(f"{escape(row['out'])}: already exists, skipped", highlight=False)
        return
    log.print(
        f"{escape(row['out'])}: {row['tokens']} tokens of {row['cells']} cells "
        f"({100 * row['tokens'] / row['cells']:.2f} %) in {row['frames']} frames, {row['seconds']:.1f} s",
        highlight=False,
        soft_wrap=True,
    )
