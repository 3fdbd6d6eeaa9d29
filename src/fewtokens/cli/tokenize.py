"""`fewtokens tokenize`: videos to files of few tokens."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.common import (
    BatchOption,
    DeviceOption,
    DtypeOption,
    EncoderOption,
    EndOption,
    FpsOption,
    FramesOption,
    JsonOption,
    KeepOption,
    SeedOption,
    SizeOption,
    SpecOption,
    StartOption,
    StreamOption,
    TruncatedOption,
    fail,
    log,
    make_pipeline,
    print_json,
    progress,
    read_video,
    unused,
    verb,
)
from fewtokens.cli.resume import check_request, check_source, distinct_names, one_each, source_now, tell_damaged
from fewtokens.cli.tokenize_stream import stream_one

if TYPE_CHECKING:
    from fewtokens.core.pipeline import Pipeline

app = typer.Typer(add_completion=False)


@app.command(
    epilog='Examples:  [bold]fewtokens tokenize clip.mp4 --with "tome(keep=0.1)" --out clip.safetensors[/bold]   |   '
    "[bold]fewtokens tokenize videos/*.mp4 --encoder facebook/dinov2-small --with kmeans --keep 32 "
    "--out tokens/[/bold]   |   "
    "[bold]fewtokens tokenize --stream long.mp4 --fps 2 --with rlt --out long/[/bold]"
)
@verb
def tokenize(
    context: typer.Context,
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO...", help="Videos, images or folders of images.")],
    target: Annotated[Path, typer.Option("--out", help="A .safetensors file for one video, or a folder.")],
    encoder: EncoderOption = "patches",
    spec: SpecOption = "tome",
    keep: KeepOption = None,
    frames: FramesOption = None,
    fps: FpsOption = None,
    size: SizeOption = 224,
    start: StartOption = 0.0,
    end: EndOption = None,
    stream: StreamOption = None,
    allow_truncated: TruncatedOption = False,
    streaming: Annotated[
        bool, typer.Option("--stream", help="Chunk by chunk in constant memory, for causal methods; a folder each.")
    ] = False,
    chunk: Annotated[int, typer.Option("--chunk", min=1, help="Frames of a chunk of --stream.")] = 32,
    events: Annotated[
        float, typer.Option("--events", metavar="Q", help="With --stream: report the share Q of changing scenes.")
    ] = 0.1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make files again that are there.")] = False,
    batch: BatchOption = 32,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Turn videos into files of few tokens, one safetensors file each.

    What was made of the same video already is skipped; what was made of another is an error, and a damaged file is
    made again. With several videos a broken one does not stop the others: it is listed in failed.jsonl beside the
    results, and the exit code is 1.

    With --stream a video of any length is read in chunks; its tokens go to a folder of files as they come
    (`fewtokens.core.streaming.load` puts them together), and moments when the scene changes are printed.
    """
    if not streaming:
        unused(context, "belong to --stream", "chunk", "events")
    jobs = _targets(videos, target, streaming)
    from fewtokens.core import files

    pipeline = make_pipeline(spec, keep, seed, encoder, device, dtype, batch)
    reading: dict[str, Any] = {
        "frames": frames,
        "fps": fps,
        "size": size,
        "start": start,
        "end": end,
        "stream": stream,
        "allow_truncated": allow_truncated,
    }
    if streaming:
        if frames is not None:
            raise ValueError("--frames spreads over a whole video; with --stream say --fps, or nothing for every frame")
        reading |= {"chunk": chunk, "events": events}
        del reading["frames"]
    files.sweep(jobs[0][1].parent)
    done, failed = [], []
    assert pipeline.encoder is not None
    single = len(jobs) == 1
    with progress("frames" if single else "videos", None if single else len(jobs)) as advance:
        if single:
            pipeline.encoder.progress = advance
        for number, (video, path) in enumerate(jobs):
            try:
                make = stream_one if streaming else _one
                row = make(pipeline, video, path, reading, seed, overwrite)
            except (ValueError, OSError) as error:
                if single:
                    raise
                fail(error)
                failed.append({"video": str(video), "error": " ".join(str(error).split())})
            else:
                done.append(row)
                if not as_json:
                    _say(row)
            if not single:
                advance(number + 1)
    if not single:
        _write_failures(target / "failed.jsonl", failed)
    if as_json:
        print_json({"done": done, "failed": failed})
    if failed:
        log.print(f"{len(failed)} of {len(jobs)} failed, listed in {escape(str(target / 'failed.jsonl'))}")
        raise typer.Exit(1)


def _targets(videos: list[Path], target: Path, streaming: bool) -> list[tuple[Path, Path]]:
    """Which file, or which folder of a stream, each video goes to.

    Raises:
        ValueError: several videos for one file, or a place that something else has taken.
    """
    videos = one_each(videos)
    if streaming and target.suffix == ".safetensors":
        raise ValueError(f"--stream writes a folder; give one as --out instead of {target}")
    if target.suffix == ".safetensors" and not target.is_dir():
        if len(videos) > 1:
            raise ValueError(f"{len(videos)} videos cannot go into one file {target}; give a folder as --out")
        return [(videos[0], target)]
    if target.exists() and not target.is_dir():
        raise ValueError(f"--out {target} is a file that does not end in .safetensors; give such a name, or a folder")
    suffix = "" if streaming else ".safetensors"
    jobs = [(video, target / f"{name}{suffix}") for video, name in zip(videos, distinct_names(videos), strict=True)]
    for _, path in jobs:
        if path.exists() and path.is_dir() != streaming:
            kind, wanted = ("folder", "file") if path.is_dir() else ("file", "folder")
            raise ValueError(f"{path} is a {kind}, and a {wanted} of this name is to be written; give another --out")
    return jobs


def _one(
    pipeline: Pipeline, video: Path, path: Path, reading: dict[str, Any], seed: int, overwrite: bool
) -> dict[str, Any]:
    """Tokenizes one video; returns what to say of it."""
    import torch

    assert pipeline.encoder is not None
    request = {"spec": pipeline.spec, "encoder": pipeline.encoder.describe(), "reading": reading, "seed": seed}
    source = source_now(video)
    if path.exists() and not overwrite and (made := _made(path)) is not None:
        check_source(path, made.get("source"), source, "say --overwrite, or give another --out")
        check_request(path, made, request)
        return {"video": str(video), "out": str(path), "skipped": True}
    start = time.perf_counter()
    clip = read_video(video, **reading)
    with torch.inference_mode():
        tokens = pipeline(clip.frames, clip.times)
    tokens.to("cpu").save(path, **request, source={**source, "name": clip.name})
    return {
        "video": str(video),
        "out": str(path),
        "skipped": False,
        "frames": len(clip),
        "cells": tokens.grid.cells,
        "tokens": int(tokens.count[0]),
        "bytes": path.stat().st_size,
        "seconds": round(time.perf_counter() - start, 3),
    }


def _made(path: Path) -> dict[str, Any] | None:
    """What a token file says it was made from and with; None where it is damaged."""
    from fewtokens.core import files
    from fewtokens.core.plain import conform
    from fewtokens.core.tokens import Header

    try:
        header = files.load_header(path, "tokens")
        try:
            return conform(header, Header, f"{path}: a damaged token file")["meta"]
        except ValueError as error:
            raise files.Damaged(str(error)) from None
    except files.Damaged as error:
        tell_damaged(error)
        return None


def _say(row: dict[str, Any]) -> None:
    if row["skipped"]:
        log.print(f"{escape(row['out'])}: there already, skipped", highlight=False)
        return
    log.print(
        f"{escape(row['out'])}: {row['tokens']} tokens of {row['cells']} cells "
        f"({100 * row['tokens'] / row['cells']:.2f} %) in {row['frames']} frames, {row['seconds']:.1f} s",
        highlight=False,
        soft_wrap=True,
    )


def _write_failures(path: Path, failed: list[dict[str, str]]) -> None:
    """The failures of this run; a list from an earlier one goes."""
    from fewtokens.core.files import write_text

    if not failed:
        path.unlink(missing_ok=True)
        return
    write_text(path, "".join(json.dumps(row) + "\n" for row in failed))
