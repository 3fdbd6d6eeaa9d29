"""`fewtokens encode`: encodes videos with a tokenizer, to files that `fewtokens decode` reads."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.batch import Batch
from fewtokens.cli.command import verb
from fewtokens.cli.console import log, note
from fewtokens.cli.encode_job import EncodeWork, encoded_format, load
from fewtokens.cli.errors import check_exists
from fewtokens.cli.jobs import JOB, is_job, job_modes, report_job, run_videos_job, sources_of
from fewtokens.cli.options import (
    ENCODER,
    INPUT,
    OUTPUT,
    Check,
    FpsOption,
    JobOptions,
    JsonOption,
    OverwriteOption,
    RunOptions,
    VideosArgument,
    check_tokenizer,
    find_tokenizer,
)
from fewtokens.cli.progress import progress
from fewtokens.cli.resume import (
    check_request,
    check_source,
    report_damaged,
    source_now,
    token_files,
)
from fewtokens.cli.video_parts import VideoParts, encode_parts

if TYPE_CHECKING:
    from fewtokens.tokenizers import Tokenizer
    from fewtokens.tokenizers.files import EncodedWriter

TokenizerOption = Annotated[
    str,
    typer.Option(
        "--tokenizer",
        help="Folder or checkpoint of a trained tokenizer, or a hub id; or a preset or a spec, with random parameters.",
        rich_help_panel=ENCODER,
    ),
    Check(check_tokenizer, find_tokenizer),
]


@verb(
    "fewtokens encode clip.mp4 --tokenizer run/tokenizer --out clip.safetensors",
    "fewtokens encode a.mp4 b.mp4 --tokenizer run/tokenizer --packed --fps 8 --size 128 --out codes/ --wds codes.tar",
    'fewtokens encode photo.png --tokenizer "tubelet | fsq > tubelet" --out photo.safetensors',
    "fewtokens encode list.txt --tokenizer run/tokenizer --workers 2 --out codes/",
    modes=job_modes(("wds", "overwrite"), f"{JOB})", is_job),
)
def encode(
    videos: VideosArgument,
    tokenizer: TokenizerOption,
    target: Annotated[
        str,
        typer.Option(
            "--out",
            metavar="PATH",
            help="Output .safetensors file (one video), or output folder; of a job also a URI such as s3://bucket/codes.",
            rich_help_panel=OUTPUT,
        ),
    ],
    run: RunOptions,
    frames: Annotated[
        int | None,
        typer.Option(
            "--frames",
            min=1,
            help="Number of frames, spread evenly over the video. Default: every frame.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    fps: FpsOption = None,
    size: Annotated[
        int | None,
        typer.Option(
            "--size",
            min=1,
            help="Short side of the frames, in pixels. Default: that of the video.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    packed: Annotated[
        bool,
        typer.Option("--packed", help="Store codes in as few bits as their number needs.", rich_help_panel=OUTPUT),
    ] = False,
    half: Annotated[
        bool, typer.Option("--half", help="Store continuous tokens in 16 bits.", rich_help_panel=OUTPUT)
    ] = False,
    wds: Annotated[
        Path | None,
        typer.Option(
            "--wds",
            metavar="TAR",
            help="Also write all results to a tar in the layout of WebDataset.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    jobs: JobOptions = JobOptions(),
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Encode videos and images with a tokenizer, one safetensors file per video, from which they can be decoded.

    Videos of any length are read in chunks; a tokenizer that can neither process chunks nor has a window encodes the
    whole video at once. The header of a file names the tokenizer and the SHA-256 of its parameters, so that files of
    other parameters are not decoded by mistake.

    Existing outputs are skipped if they were made from the same video, and are an error if not; damaged files are
    written again. If one of several videos cannot be read, the others are still processed; it is listed in
    failed.jsonl in the output folder, and the exit code is 1.

    A list (.txt, a path or URL per line), a folder of videos or a pattern in quotes is a job, as in `fewtokens
    tokenize`: all frames of a video are read before it is encoded, and the files are the same.
    """
    if frames is not None and fps is not None:
        raise ValueError("give --frames or --fps, not both")
    work = EncodeWork(tokenizer, run, frames, fps, size, packed, half)
    in_shards = is_job({"videos": videos, "engine": jobs.engine})
    tasks = [] if in_shards else token_files(videos, Path(target))
    single = len(tasks) == 1
    if single:
        check_exists(tasks[0][0])
    if wds is not None and wds.is_dir():
        raise ValueError(f"--wds must be a file, got the folder {wds}")
    from fewtokens.jobs.records import make_keys
    from fewtokens.tokenizers.files import EncodedWriter, write_webdataset
    from fewtokens.tokenizers.load import source_of

    if (source := source_of(tokenizer)) != "video":
        raise ValueError(f"{tokenizer} encodes {source}, not videos; use it in Python, see `SignalTokenizer`")
    model, fingerprint = load(tokenizer, run)
    if "seed" in model.origin:
        note(f"{tokenizer} has random weights:", "the result cannot be used; give the folder of a trained tokenizer")
    EncodedWriter(model, packed=packed, half=half, fingerprint=fingerprint)  # raises an error before any work
    if in_shards:
        settings = work.settings()
        report_job(
            run_videos_job(sources_of(videos), target, jobs, work, settings, encoded_format()),
            target,
            settings["format"],
            ("cells", "tokens"),
            as_json,
        )
        return
    request = work.request()
    batch = Batch(len(tasks), "video", Path(target))
    with progress("frames" if single else "videos", None if single else len(tasks)) as advance:
        for number, (video, path) in enumerate(tasks):
            try:
                writer = EncodedWriter(model, packed=packed, half=half, fingerprint=fingerprint)
                row = _encode_file(model, writer, video, path, request, overwrite, advance if single else None)
            except (ValueError, OSError) as error:
                batch.fail(video, error)
            else:
                batch.done.append(row)
                if not as_json:
                    _print_row(row)
            if not single:
                advance(number + 1)
    if wds is not None and batch.done:
        outputs = [Path(row["out"]) for row in batch.done]
        try:
            write_webdataset(wds, zip(make_keys(outputs), outputs, strict=True))
        except (ValueError, OSError) as error:
            batch.fail(wds, error)
    batch.finish(as_json)


def _encode_file(
    tokenizer: Tokenizer, writer: EncodedWriter, video: Path, path: Path, request: dict[str, Any], overwrite: bool,
    advance: Callable[..., None] | None,
) -> dict[str, Any]:  # fmt: skip
    """Encodes one video to a file, and returns its entry in the report."""
    from fewtokens.tokenizers.files import read_header

    start = time.perf_counter()
    source = source_now(video)
    if path.exists() and not overwrite and (earlier := _meta(path)) is not None:
        check_source(path, earlier.get("source"), source, "give --overwrite, or another --out")
        check_request(path, earlier, request)
        return {"video": str(video), "out": str(path), "skipped": True}
    parts = VideoParts(video, request["reading"], advance)
    encode_parts(tokenizer, writer, parts)
    writer.save(path, fps=parts.rate, source={**source, "name": video.name}, **request)
    header = read_header(path)
    length, height, width = header["size"]
    return {
        "video": str(video),
        "out": str(path),
        "skipped": False,
        "frames": length,
        "height": height,
        "width": width,
        "tokens": header["total_tokens"],
        "bits": header["bits"],
        "bits_per_pixel": header["bits"] / (length * height * width),
        "bytes": header["bytes"],
        "seconds": round(time.perf_counter() - start, 3),
    }


def _meta(path: Path) -> dict[str, Any] | None:
    """Returns the source and settings stored in an encoded video, or None if it is damaged."""
    from fewtokens.core import files
    from fewtokens.tokenizers.files import read_encoded, read_header

    try:
        read_encoded(path)
        return read_header(path)["meta"]
    except files.CorruptFileError as error:
        report_damaged(error)
        return None


def _print_row(row: dict[str, Any]) -> None:
    if row["skipped"]:
        log.print(f"{escape(row['out'])}: already exists, skipped", highlight=False)
        return
    log.print(
        f"{escape(row['out'])}: {row['tokens']} tokens, {row['bits_per_pixel']:.4g} bits per pixel, {row['bytes']} "
        f"bytes for {row['frames']} frames of {row['height']}x{row['width']}, {row['seconds']:.1f} s",
        highlight=False,
        soft_wrap=True,
    )
