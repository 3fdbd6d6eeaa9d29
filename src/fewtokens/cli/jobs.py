"""What commands over many videos have in common when they run as a job, see `fewtokens.jobs`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape

from fewtokens.cli.command import Mode
from fewtokens.cli.console import fail, log, note
from fewtokens.cli.options import JobOptions
from fewtokens.cli.progress import progress
from fewtokens.cli.tables import print_json
from fewtokens.core.checks import is_collection

if TYPE_CHECKING:
    from fewtokens.jobs import Format, Report, Work


# When a command of videos is a job, for messages; options follow.
JOB = "a job (a list, folder or pattern of videos, --engine"


def is_job(values: Mapping[str, Any]) -> bool:
    """Whether the options of a command describe a job."""
    given = values["engine"] is not None or values.get("format") is not None
    return given or any(is_collection(str(path)) for path in values["videos"] or ())


def has_engine(values: Mapping[str, Any]) -> bool:
    """Whether the options describe a job of a command that also does folders and lists without one."""
    return values["engine"] is not None


def job_modes(
    unused: tuple[str, ...], job: str = "--engine", chosen: Callable[[Mapping[str, Any]], bool] = has_engine
) -> tuple[Mode, ...]:
    """Returns the modes of a command that can be a job: `unused` have no effect in one, `job` says when it is one."""
    return (
        Mode("job", chosen, unused, f"cannot be combined with {job}"),
        Mode(
            "no job", lambda values: not chosen(values), ("address", "workers", "retry", "per_shard"), f"require {job}"
        ),
        Mode(
            "local", lambda values: chosen(values) and values["engine"] != "ray", ("address",), "require --engine ray"
        ),
    )


def sources_of(videos: Sequence[Path]) -> list[tuple[str, str]]:
    """Returns the name and the location of each video of a job; see `fewtokens.jobs.find_sources`."""
    from fewtokens.jobs import find_sources

    return find_sources([str(path) for path in videos])


def run_videos_job(
    sources: Sequence[tuple[str, str]], target: str, options: JobOptions, work: Work, settings: Mapping[str, Any],
    form: Format | None = None,
) -> Report:  # fmt: skip
    """Runs a job, and prints each video that fails."""
    from fewtokens.jobs import run_job

    if target.endswith(".safetensors"):
        raise ValueError(f"a job writes a folder, so --out must be a folder, got {target}")
    if "://" not in target and Path(target).exists() and not Path(target).is_dir():
        raise ValueError(f"--out must be a folder, got the file {target}")

    def report(row: Mapping[str, Any]) -> None:
        if row["error"] is not None:
            fail(row["error"])

    with progress("videos", len(sources)) as advance:
        return run_job(
            sources, work, settings, target, form=form, engine=options.engine or "local", per_shard=options.per_shard,
            workers=options.workers, address=options.address, retry=options.retry, progress=advance, report=report,
        )  # fmt: skip


def failures(report: Report) -> list[dict[str, Any]]:
    """Returns the videos of a job that failed, in this run or before, as --json prints them."""
    return [{"video": row["source"], "error": row["error"]} for row in report.rows if row["error"] is not None]


def exit_with_failures(report: Report, target: str) -> None:
    """Exits with 1 if a video failed, in this run or before, and says where they are listed."""
    if failed := failures(report):
        note("note:", f"{len(failed)} videos failed; see {target}/failed.jsonl, and --retry to try them again")
        raise typer.Exit(1)


def report_job(report: Report, target: str, format: str, numbers: tuple[str, ...], as_json: bool, **more: Any) -> None:
    """Prints what a job has done; exits with 1 if a video failed.

    Args:
        report: of the job.
        target: its folder.
        format: name of the format.
        numbers: columns of the manifest whose sums are printed: cells and tokens, or frames.
        as_json: whether it is printed as JSON.
        more: entries of the JSON.
    """
    done = [row for row in report.rows if row["error"] is None]
    totals = {name: sum(dict(row)[name] for row in done) for name in numbers}  # type: ignore[misc]
    if as_json:
        print_json({
            "out": target, "format": format, "shards": report.shards, "videos": len(done), "new": report.new, **totals,
            "failed": failures(report), **more,
        })  # fmt: skip
        exit_with_failures(report, target)
        return
    sums = ", ".join(f"{value} {name}" for name, value in totals.items())
    if {"cells", "tokens"} <= totals.keys():
        share = 100 * totals["tokens"] / max(totals["cells"], 1)
        sums = f"{totals['tokens']} tokens of {totals['cells']} cells ({share:.2f} %)"
    log.print(
        f"{escape(target)}: {len(done)} videos in {report.shards} shards ({format}), {sums}; {report.new} new",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    exit_with_failures(report, target)
