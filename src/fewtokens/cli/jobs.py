"""What commands over many videos have in common when they run as a job, see `fewtokens.jobs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    from fewtokens.jobs import Format, Work


def is_job(values: Mapping[str, Any]) -> bool:
    """Whether the options of a command describe a job."""
    given = values["engine"] is not None or values.get("format") is not None
    return given or any(is_collection(str(path)) for path in values["videos"] or ())


def job_modes(unused: tuple[str, ...], triggers: str) -> tuple[Mode, ...]:
    """Returns the modes of a command that can be a job: `unused` have no effect in one, `triggers` make it one."""
    job = f"a job (a list, folder or pattern of videos, {triggers})"
    return (
        Mode("job", is_job, unused, f"cannot be combined with {job}"),
        Mode(
            "no job", lambda values: not is_job(values), ("address", "workers", "retry", "per_shard"), f"require {job}"
        ),
        Mode(
            "local", lambda values: is_job(values) and values["engine"] != "ray", ("address",), "require --engine ray"
        ),
    )


def run_videos_job(
    videos: Sequence[Path], target: str, options: JobOptions, work: Work, settings: Mapping[str, Any], as_json: bool,
    form: Format | None = None,
) -> None:  # fmt: skip
    """Runs a job, and prints what failed and how much was done; exits with 1 if a video failed."""
    from fewtokens.jobs import find_sources, run_job

    if target.endswith(".safetensors"):
        raise ValueError(f"a job writes a folder, so --out must be a folder, got {target}")
    if "://" not in target and Path(target).exists() and not Path(target).is_dir():
        raise ValueError(f"--out must be a folder, got the file {target}")
    sources = find_sources([str(path) for path in videos])

    def report(row: Mapping[str, Any]) -> None:
        if row["error"] is not None:
            fail(row["error"])

    with progress("videos", len(sources)) as advance:
        result = run_job(
            sources, work, settings, target, form=form, engine=options.engine or "local", per_shard=options.per_shard,
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
