"""`fewtokens bench`: compares methods on your videos and encoder, at several budgets."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fewtokens.cli.bench_clips import (
    Row,
    check_clips,
    find_clips,
    read_clip,
    read_selected,
    score_row,
    select_shown,
    thumbnails,
)
from fewtokens.cli.bench_job import BenchWork, load, run_bench_job
from fewtokens.cli.bench_report import (
    count,
    describe_machine,
    log_estimate,
    print_comparison,
    print_report,
    write_report,
)
from fewtokens.cli.command import Mode, verb
from fewtokens.cli.console import fail, log
from fewtokens.cli.errors import check_exists, check_folder
from fewtokens.cli.jobs import job_modes, sources_of
from fewtokens.cli.options import (
    INPUT,
    METHOD,
    OUTPUT,
    RUN,
    Check,
    EncoderOptions,
    JobOptions,
    JsonOption,
    ReadOptions,
    RunOptions,
    SelectOptions,
    SizeOption,
    check_spec_lists,
    names_of,
)
from fewtokens.cli.pipelines import (
    PATCHES,
    check_no_selector,
    comma_separated,
    parse_keep,
    plain_selection,
    selection_of,
)
from fewtokens.cli.progress import progress
from fewtokens.cli.resume import (
    append_row,
    check_settings,
    read_rows,
)
from fewtokens.cli.tables import print_json
from fewtokens.core.budget import budget_order, budget_text
from fewtokens.core.checks import is_collection
from fewtokens.core.keys import current_keys

# Measures by which the tables can be sorted.
_SORTABLE = (
    "cosine", "rare_cosine", "relative_error", "psnr_db", "j_and_f", "rank_correlation", "tokens", "method_ms",
    "total_ms", "peak_mib",
)  # fmt: skip
# What --quick measures at most.
_QUICK_FRAMES, _QUICK_SIZE = 8, 112


def _check_measure(key: str) -> None:
    if key not in _SORTABLE:
        raise ValueError(f"--sort must be one of {', '.join(_SORTABLE)}, got {key!r}")


@dataclass(frozen=True)
class BudgetOptions:
    """The methods to compare, and the budgets."""

    specs: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="SPEC",
            help="Comma-separated specs; can be repeated. Default: all methods. Baselines are always included.",
            rich_help_panel=METHOD,
        ),
        Check(check_spec_lists("all")),
    ] = None
    keep: Annotated[
        str,
        typer.Option(
            "--keep",
            metavar="K",
            help="Comma-separated budgets: 0.1 is a fraction, 32 a count.",
            rich_help_panel=METHOD,
        ),
    ] = "0.25,0.1,0.05,0.02"


@dataclass(frozen=True)
class ClipOptions:
    """How clips are read."""

    frames: Annotated[
        int,
        typer.Option("--frames", min=1, help="Number of frames per clip, sampled uniformly.", rich_help_panel=INPUT),
    ] = 32
    size: SizeOption = 224
    davis: Annotated[
        Path | None,
        typer.Option(
            "--davis",
            help="DAVIS folder; its sequences are included and scored by J and F.",
            rich_help_panel=INPUT,
        ),
    ] = None
    davis_size: Annotated[
        int,
        typer.Option("--davis-size", min=16, help="Short side of the DAVIS frames, in pixels.", rich_help_panel=INPUT),
    ] = 480


@verb(
    "fewtokens bench videos/ --encoder facebook/dinov2-small --frames 32 --out bench/",
    'fewtokens bench clip.mp4 --with "tome,kmeans,sttm(keep=0.1)" --keep 0.1 --out bench/',
    'fewtokens bench film.mp4 --select "scene_changes(keep=32)" --with tome --keep 0.1 --out bench/',
    "fewtokens bench videos/ --quick --out look/",
    "fewtokens bench list.txt --encoder facebook/dinov2-small --engine local --out bench/",
    "fewtokens bench --compare before/results.json after/results.json",
    modes=(
        Mode(
            "compare", lambda values: values["compare"],
            (
                *names_of(ClipOptions, EncoderOptions, BudgetOptions, RunOptions, SelectOptions, JobOptions),
                "question", "target", "repeats", "shown", "measure", "quick",
            ),
            "have no effect with --compare",
        ),
        Mode(
            "selecting", lambda values: not values["compare"] and values["select"] is not None, ("frames", "davis"),
            "cannot be combined with --select",
        ),
        Mode(
            "not selecting", lambda values: not values["compare"] and values["select"] is None,
            ("question", "scorer", "near"), "require --select",
        ),
        Mode(
            "without DAVIS", lambda values: not values["compare"] and values["davis"] is None, ("davis_size",),
            "require --davis",
        ),
        Mode(
            "DAVIS alone", lambda values: values["davis"] is not None and not values["videos"], ("size",),
            "have no effect without videos; use --davis-size for DAVIS",
        ),
        PATCHES,
        *job_modes(("davis", "repeats", "quick")),
    ),
)  # fmt: skip
def bench(
    clip: ClipOptions,
    encoding: EncoderOptions,
    budget: BudgetOptions,
    run: RunOptions,
    videos: Annotated[
        list[Path] | None,
        typer.Argument(metavar="VIDEO_OR_FOLDER", help="Videos or folders; lists and patterns with --engine."),
    ] = None,
    selecting: SelectOptions = SelectOptions(),
    question: Annotated[
        str | None,
        typer.Option("--question", help="Question by which --select selects frames.", rich_help_panel=INPUT),
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Output folder. Required unless --compare is given. Resumes if it already contains a run.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, help="Number of timed runs per method and clip.", rich_help_panel=RUN)
    ] = 3,
    shown: Annotated[
        int, typer.Option("--show", min=0, help="Number of clips to show on the page.", rich_help_panel=OUTPUT)
    ] = 3,
    measure: Annotated[
        str,
        typer.Option(
            "--sort",
            metavar="KEY",
            help=f"Measure that sorts the tables, the best on top: {', '.join(_SORTABLE)}.",
            rich_help_panel=OUTPUT,
        ),
        Check(_check_measure),
    ] = "cosine",
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help=f"A first look: the first clip, at most {_QUICK_FRAMES} frames of {_QUICK_SIZE} pixels, the first "
            "budget, one run each.",
            rich_help_panel=INPUT,
        ),
    ] = False,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Show what changed between two results.json files, given as arguments, and exit.",
            rich_help_panel=INPUT,
        ),
    ] = False,
    sharding: JobOptions = JobOptions(),
    as_json: JsonOption = False,
) -> None:
    """Compare methods on your videos and your encoder: what they preserve, what they cost.

    Measured for each method, budget and clip: how well the full features are reconstructed, also in rare cells; on
    labeled sequences J and F of label propagation; tokens, operations, milliseconds and memory. The baselines random,
    uniform, fewer_frames, downsample and mean_pool are always included. If a method cannot reach a budget, tome merges
    its tokens down to it; its row reads "METHOD + tome". A row with more tokens than the budget is marked.

    With --select, each method has a second row, "SELECTOR | METHOD", on the frames that the selector chooses. The other
    rows are on as many evenly spaced frames. Each row is compared with the full features of the same frames, and
    rank_correlation of several clips with those of the evenly spaced ones.

    Each table is sorted by --sort, the best on top, and marks the best row and the Pareto front of this measure and the
    time. Writes results.json, results.csv, results.md, plots as PNG, SVG and PDF, and a page, index.html.

    With --engine it is a job, as `fewtokens tokenize` over a folder: clips from lists (.txt), patterns and folders at
    any depth are measured in shards by several processes or a Ray cluster, then the same tables and page are written.
    A job measures no times, since those of processes that share cores cannot be compared: it has the tokens in their
    place. For times, run a few clips without --engine. The same command resumes a job; clips that failed are measured
    again only with --retry.
    """
    if compare:
        print_comparison(videos or [], as_json)
        return
    if target is None:
        raise ValueError("missing option '--out'; give --out FOLDER")
    check_folder(target)
    if not videos and clip.davis is None:
        raise ValueError("give videos, folders of videos, or --davis FOLDER")
    in_shards = sharding.engine is not None
    if not in_shards and (lists := [path for path in videos or [] if not path.is_dir() and is_collection(str(path))]):
        raise ValueError(f"{lists[0]}: a list or a pattern requires --engine, such as --engine local")
    if len(videos or []) == 1 and not in_shards:
        check_exists(*(videos or []))
    budgets = [parse_keep(part) for part in comma_separated(budget.keep)]
    if not budgets:
        raise ValueError("--keep must contain at least one budget, such as 0.1")
    if in_shards and measure in ("method_ms", "total_ms"):
        raise ValueError(f"--sort {measure} has no effect with --engine, which measures no times")
    if measure == "j_and_f" and clip.davis is None:
        raise ValueError("--sort j_and_f requires --davis, whose clips have masks")
    if quick:
        clip = replace(
            clip,
            frames=min(clip.frames, _QUICK_FRAMES),
            **{name: min(getattr(clip, name), _QUICK_SIZE) for name in ("size", "davis_size")},
        )
        budgets, repeats = budgets[:1], 1

    from fewtokens.core import files
    from fewtokens.encoders import pick_device
    from fewtokens.evaluation.bench import FULL, encode, jobs, select_specs
    from fewtokens.jobs.folder import SETTINGS

    loaded = load(encoding, run)
    specs = select_specs(",".join(budget.specs or ["all"]), loaded)
    check_no_selector(specs)
    selects = selection_of(selecting, question, run)
    if selects and selects["select"].sizes:
        raise ValueError(f"{selects['select'].name} chooses frames of several sizes, which bench does not compare")
    select = selects["select"].spec if selects else None
    located = sources_of(videos or []) if in_shards else []
    sources = [] if in_shards else find_clips(videos or [], clip.davis)[: 1 if quick else None]
    if measure == "psnr_db" and loaded.decode is None:
        raise ValueError(f"--sort psnr_db requires an encoder that decodes to frames, such as patches, not {loaded.id}")
    if measure == "rank_correlation" and len(located or sources) < 3:
        raise ValueError(f"--sort rank_correlation requires at least 3 clips, got {len(located or sources)}")
    settings = {
        "encoder": loaded.describe(),
        "dtype": encoding.dtype or "float32",
        "frames": clip.frames if select is None else None,
        **({} if select is None else {"selecting": plain_selection(selects)}),
        "size": clip.size,
        "davis_size": clip.davis_size,
        "seed": run.seed,
    }
    reached = [keep for keep in budgets if keep is not None]
    if in_shards:
        work = BenchWork(
            encoding, run, ReadOptions(frames=clip.frames, size=clip.size), selecting, question, tuple(specs),
            tuple(reached), tuple(location for _, location in located[:shown]),
        )  # fmt: skip
        run_bench_job(located, target, sharding, work, settings, measure, as_json)
        return
    if (target / SETTINGS).exists():
        raise ValueError(f"{target}: holds a job; give --engine to resume it, or another --out")
    files.sweep(target)
    files.sweep(target / "features")
    check_settings(target / "settings.json", settings)
    source_notes, broken = check_clips(target, sources)
    # By clip, method and budget: two runs that share a folder may both have written a row.
    results = {
        _key(row["clip"], row["method"], row["keep"]): row
        for row in current_keys(read_rows(target / "rows.jsonl", Row))
    }
    requested = list(jobs([name for name, *_ in sources], specs, reached, select))
    failed: list[dict[str, str]] = []
    shown_clips = select_shown(sources, shown)
    images: dict[str, Any] = {}
    device = pick_device(run.device)
    finished = sum(_key(*job) in results for job in requested)
    estimated = False
    log.print(f"{count(len(sources), 'clip')}: all tokens, and {count(len(specs), 'method')} at "
        f"{count(len(budgets), 'budget')}: {len(requested)} measurements", highlight=False)  # fmt: skip
    with progress("bench", len(requested)) as advance:
        advance(finished)
        for name, path, masks in sources:
            missing = [job for job in requested if job[0] == name and _key(*job) not in results]
            if not missing and name not in shown_clips:
                continue
            try:
                if name in broken:
                    raise ValueError(broken[name])
                chosen = read_selected(name, path, clip.size, selects) if selects else None
                frames = clip.frames if chosen is None else len(chosen.frames)
                item = read_clip(name, path, masks, frames, clip.davis_size if masks else clip.size)
                if name in shown_clips:
                    images[name] = thumbnails(item)
                if not missing:
                    continue
                advance(finished, title=f"{name}: encoding")
                cache = target / "features" / f"{name}.safetensors"
                encoded = encode(item, loaded, repeats=repeats, cache=cache)
                cache = target / "features" / f"{name}.selected.safetensors"
                selected = None if chosen is None else encode(chosen, loaded, repeats=repeats, cache=cache)
            except (ValueError, OSError) as error:
                if len(sources) == 1:
                    raise
                fail(error)
                failed.append({"video": str(path), "error": " ".join(str(error).split())})
                continue
            options: dict[str, Any] = {
                "repeats": repeats, "seed": run.seed, "shown": name in shown_clips, "device": device,
            }  # fmt: skip
            for job in missing:
                _, spec, keep = job
                finished += 1
                advance(finished - 1, title=f"{name}: {_job_title(spec, keep)}")
                start = time.perf_counter()
                try:
                    row = results[_key(*job)] = score_row(job, encoded, selected, select, loaded, **options)
                except ValueError as error:
                    # The table has no entry for a budget that the method cannot reach with this encoder.
                    fail(f"{name}, {spec} at {budget_text(keep)}: {error}")
                    continue
                append_row(target / "rows.jsonl", row)
                if spec == FULL and not estimated:
                    estimated = True
                    left = [spec for _, spec, _ in requested[finished:]]
                    log_estimate(time.perf_counter() - start, encoded, specs, left, repeats, select)
                advance(finished)
        advance(len(requested))
    rows = [results[key] for key in dict.fromkeys(_key(*job) for job in requested) if key in results]
    if not rows:
        raise ValueError("no clip could be read, so there is nothing to compare")
    header = {"settings": settings, "machine": describe_machine(device), "sources": source_notes}
    summary = write_report(target, header, rows, images, measure)
    if as_json:
        print_json({"settings": settings, "summary": summary, "failed": failed, "page": str(target / "index.html")})
    else:
        print_report(summary, target, measure)
    if failed:
        log.print(f"{len(failed)} of {len(sources)} clips failed")
        raise typer.Exit(1)


def _key(clip: str, method: str, keep: float | int | str) -> tuple[str, str, tuple[int, float]]:
    """Identifies a measurement: 1 and 1.0, one token and all of them, are equal numbers."""
    return clip, method, budget_order(keep)


def _job_title(spec: str, keep: Any) -> str:
    from fewtokens.evaluation.bench import FULL

    return "all tokens" if spec == FULL else f"{spec} at {budget_text(keep)}"
