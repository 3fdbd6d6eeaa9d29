"""`fewtokens tokenize` over a list, a folder or a pattern of videos: a job in shards, see `fewtokens.jobs`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer
from rich.markup import escape

from fewtokens.cli.console import fail, log, note
from fewtokens.cli.options import EncoderOptions, JobOptions, MethodOptions, ReadOptions, RunOptions, SelectOptions
from fewtokens.cli.pipelines import make_pipeline, plain_selection, read_video, selection_of, with_defaults
from fewtokens.cli.progress import progress
from fewtokens.cli.tables import print_json
from fewtokens.core.checks import is_collection

if TYPE_CHECKING:
    from fewtokens.core.pipeline import Pipeline
    from fewtokens.core.tokens import Tokens
    from fewtokens.video import Video


def is_job(values: Mapping[str, Any]) -> bool:
    """Whether the options of `tokenize` describe a job."""
    given = values["engine"] is not None or values["format"] is not None
    return given or any(is_collection(str(path)) for path in values["videos"] or ())


@lru_cache(maxsize=1)
def _pipeline(method: MethodOptions, encoding: EncoderOptions, run: RunOptions) -> Pipeline:
    return make_pipeline(method, encoding, run)


@lru_cache(maxsize=1)
def _selection(selecting: SelectOptions, question: str | None, run: RunOptions) -> dict[str, Any]:
    return selection_of(selecting, question, run)


class _Clip(NamedTuple):
    video: Video
    source: dict[str, Any]
    # start and end, if the location names a part of the file
    part: dict[str, float]


@dataclass(frozen=True)
class TokenizeWork:
    """What `tokenize` does with each video, a `fewtokens.jobs.Work`: the options, which other processes receive."""

    method: MethodOptions
    encoding: EncoderOptions
    run: RunOptions
    reading: ReadOptions
    selecting: SelectOptions
    question: str | None

    def read(self, location: str, check: Callable[..., None]) -> _Clip:
        """Decodes the frames of a video; see `fewtokens.jobs.Work`."""
        from fewtokens.core.identity import describe_source
        from fewtokens.jobs.sources import is_url, local_file, split_part

        whole, part = split_part(location)
        bounds: dict[str, float] = {}
        if part is not None:
            # --start and --end are relative to the part.
            start, end = self.reading.start, self.reading.end
            bounds = {"start": part[0] + start, "end": part[1] if end is None else min(part[1], part[0] + end)}
        with local_file(whole, check) as path:
            if not path.exists():
                raise ValueError(f"{location}: no such file")
            source = describe_source(path)
            video = read_video(
                path, replace(self.reading, **bounds), check, _selection(self.selecting, self.question, self.run)
            )
        name = location.partition("?")[0].rpartition("/")[2] if is_url(location) else video.name
        if is_url(location):
            source |= {"path": location, "mtime_ns": 0}
        return _Clip(video, {**source, "name": name}, bounds)

    def load(self) -> _Reduce:
        """Loads the encoder and the methods; see `fewtokens.jobs.Work`."""
        return _Reduce(self)

    def settings(self) -> dict[str, Any]:
        """Returns what determines the tokens of a video, as plain values."""
        pipeline = _pipeline(self.method, self.encoding, self.run)
        assert pipeline.encoder is not None
        reading = with_defaults(
            asdict(self.reading) | plain_selection(_selection(self.selecting, self.question, self.run))
        )
        return {
            "spec": pipeline.spec, "encoder": pipeline.encoder.describe(), "reading": reading, "seed": self.run.seed,
        }  # fmt: skip


class _Reduce:
    """Encodes and reduces videos, a `fewtokens.jobs.Reduce`."""

    def __init__(self, work: TokenizeWork) -> None:
        self.work = work
        self.pipeline = _pipeline(work.method, work.encoding, work.run)
        self.reading = asdict(work.reading) | plain_selection(_selection(work.selecting, work.question, work.run))
        # Frames per forward pass of the encoder; the encoder patches has no such limit, and gains nothing.
        self.frames = 0 if work.encoding.encoder == "patches" else work.encoding.batch

    def batches(self, videos: Iterable[_Clip]) -> Iterator[list[_Clip]]:
        """Groups consecutive videos of one size, up to --batch frames in all."""
        group: list[_Clip] = []
        for clip in videos:
            shape = clip.video.frames.shape
            if group and (
                clip.video.selection is not None
                or group[0].video.selection is not None
                or shape != group[0].video.frames.shape
                or (len(group) + 1) * len(clip.video) > self.frames
            ):
                yield group
                group = []
            group.append(clip)
        if group:
            yield group

    def __call__(self, videos: Sequence[_Clip]) -> list[Tokens]:
        """Returns the tokens of each video, with its source and settings."""
        import torch

        with torch.inference_mode():
            if len(videos) == 1:
                results = [self.pipeline(videos[0].video).to("cpu")]
            else:
                frames = torch.stack([clip.video.frames for clip in videos])
                results = list(self.pipeline(frames, torch.stack([clip.video.times for clip in videos])).to("cpu"))
        return [
            tokens.replace(
                meta={
                    "spec": tokens.meta["spec"], "encoder": tokens.meta["encoder"], "source": clip.source,
                    "reading": self.reading | clip.part, "seed": self.work.run.seed,
                }
            )
            for tokens, clip in zip(results, videos, strict=True)
        ]  # fmt: skip


def run_tokenize_job(
    videos: Sequence[Path], target: str, options: JobOptions, work: TokenizeWork, as_json: bool
) -> None:
    """Runs a job, and prints what failed and how much was done; exits with 1 if a video failed."""
    from fewtokens.jobs import find_sources, run_job

    if target.endswith(".safetensors"):
        raise ValueError(f"a job writes a folder, so --out must be a folder, got {target}")
    if "://" not in target and Path(target).exists() and not Path(target).is_dir():
        raise ValueError(f"--out must be a folder, got the file {target}")
    sources = find_sources([str(path) for path in videos])
    settings = {"format": options.format or "safetensors", **work.settings()}

    def report(row: Mapping[str, Any]) -> None:
        if row["error"] is not None:
            fail(row["error"])

    with progress("videos", len(sources)) as advance:
        result = run_job(
            sources, work, settings, target, engine=options.engine or "local", per_shard=options.per_shard,
            workers=options.workers, address=options.address, retry=options.retry, progress=advance, report=report,
        )  # fmt: skip
    failed = [row for row in result.rows if row["error"] is not None]
    done = [row for row in result.rows if row["error"] is None]
    totals = {name: sum(row[name] for row in done) for name in ("cells", "tokens")}
    if as_json:
        print_json({
            "out": target, "format": settings["format"], "shards": result.shards, "videos": len(done),
            "new": result.new, **totals,
            "failed": [{"video": row["source"], "error": row["error"]} for row in failed],
        })  # fmt: skip
    else:
        share = 100 * totals["tokens"] / max(totals["cells"], 1)
        log.print(
            f"{escape(target)}: {len(done)} videos in {result.shards} shards ({settings['format']}), "
            f"{totals['tokens']} tokens of {totals['cells']} cells ({share:.2f} %); {result.new} new",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    if failed:
        note("note:", f"{len(failed)} videos failed; see {target}/failed.jsonl, and --retry to try them again")
        raise typer.Exit(1)
