"""`fewtokens train frames`: decodes videos before pre-training."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from fewtokens.cli.command import verb
from fewtokens.cli.console import log, out
from fewtokens.cli.errors import check_exists
from fewtokens.cli.jobs import job_modes, report_job, run_videos_job
from fewtokens.cli.options import INPUT, OUTPUT, JobOptions, JsonOption, RootOption
from fewtokens.cli.progress import progress
from fewtokens.cli.tables import print_json
from fewtokens.cli.train.runs import FootageArgument, print_some

if TYPE_CHECKING:
    from fewtokens.data.footage import Collection


@verb(
    "fewtokens train frames videos/ --out frames/ --size 128",
    "fewtokens train frames k400/train.txt --root k400/train --out frames/ --size 256",
    "fewtokens train frames k400/train.txt --root k400/train --engine local --out frames/",
    modes=job_modes(("fresh",)),
)
def frames(
    data: FootageArgument,
    target: Annotated[
        str,
        typer.Option(
            "--out",
            metavar="PATH",
            help="Output folder, one .npy file per video. Existing files are skipped. Of a job also a URI.",
            rich_help_panel=OUTPUT,
        ),
    ],
    size: Annotated[
        int, typer.Option("--size", help="Short side of the frames, in pixels; 0: unchanged.", rich_help_panel=INPUT)
    ] = 128,
    root: RootOption = None,
    jobs: JobOptions = JobOptions(),
    fresh: Annotated[bool, typer.Option("--fresh", help="Overwrite existing files.", rich_help_panel=OUTPUT)] = False,
    as_json: JsonOption = False,
) -> None:
    """Decode videos to .npy files, so that pre-training does not wait for decoding.

    With --engine it is a job, as `fewtokens tokenize` over a folder: several processes or a Ray cluster decode the
    videos in shards, the manifest in the output folder has a row per video, the same command resumes it, and videos
    that failed are tried again only with --retry. The .npy files are the same. A job holds all frames of a video in
    memory. DATA can then also be a pattern in quotes.
    """
    if size < 0:
        raise ValueError(f"--size must be at least 0, got {size}")
    in_shards = jobs.engine is not None
    footage = _find(data, root, pattern=in_shards)
    if in_shards:
        _run_job(footage, target, size, jobs, as_json)
        return
    from fewtokens.data.packed import pack_frames
    from fewtokens.jobs.folder import SETTINGS

    folder = Path(target)
    if (folder / SETTINGS).exists():
        raise ValueError(f"{folder}: holds a job; give --engine to resume it, or another --out")
    with progress("decoding", len(footage.items)) as advance:
        packed = pack_frames(footage.items, folder, short=size, fresh=fresh, progress=advance)
    if as_json:
        print_json({"out": str(folder), "videos": len(packed.files), "frames": packed.frames,
                    "broken": list(packed.broken), "missing": list(footage.missing)})  # fmt: skip
        return
    out.print(f"{len(packed.files)} videos in {escape(str(folder))}, {packed.frames} frames written in this run")
    if packed.unverified:
        log.print(f"{packed.unverified} files of an earlier version, which did not save their sources, were kept")
    print_some("could not be read", packed.broken)
    print_some("missing", footage.missing)


def _find(data: Path, root: Path | None, *, pattern: bool) -> Collection:
    """Finds the videos; `pattern` allows one."""
    if pattern and not data.exists() and glob.has_magic(str(data)):
        from fewtokens.data.footage import Collection, Footage
        from fewtokens.jobs import find_sources

        return Collection(tuple(Footage(location) for _, location in find_sources([str(data)])))
    check_exists(data)
    from fewtokens.data.footage import find_footage

    return find_footage(data, root=root)


def _run_job(footage: Collection, target: str, size: int, jobs: JobOptions, as_json: bool) -> None:
    from fewtokens.cli.train.frames_job import FramesWork, frames_format, location_of
    from fewtokens.data.packed import INDEX, file_name
    from fewtokens.jobs import Store

    if Store(target).read(INDEX) is not None:
        raise ValueError(f"{target}: holds frames that were decoded without --engine; leave it out, or another --out")
    names = {location_of(item): file_name(item) for item in footage.items}
    work = FramesWork(size)
    settings = work.settings()
    sources = [(name, location) for location, name in names.items()]
    report = run_videos_job(sources, target, jobs, work, settings, frames_format())
    if not as_json:
        print_some("missing", footage.missing)
    report_job(report, target, settings["format"], ("frames",), as_json, missing=list(footage.missing))
