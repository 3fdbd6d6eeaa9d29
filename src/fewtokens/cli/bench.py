"""`fewtokens bench`: compares methods on your videos and encoder, at several budgets."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import typer
from rich.markup import escape

from fewtokens.cli.command import Mode, verb
from fewtokens.cli.console import fail, log, note, out
from fewtokens.cli.errors import check_exists, check_folder
from fewtokens.cli.options import (
    INPUT,
    METHOD,
    OUTPUT,
    RUN,
    Check,
    EncoderOptions,
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
    read_video,
    selection_of,
)
from fewtokens.cli.progress import progress
from fewtokens.cli.resume import (
    append_row,
    check_settings,
    check_source,
    distinct_names,
    read_rows,
    source_now,
    unique_paths,
)
from fewtokens.cli.tables import print_json, table
from fewtokens.core.keys import current_keys, delta_key, with_headings

if TYPE_CHECKING:
    from fewtokens.evaluation.bench import EncodedItem, Item


class _Row(TypedDict):
    """Keys that a row of an earlier run must have."""

    clip: str
    method: str
    keep: float
    vector: list[Any]


class _SourceRow(TypedDict):
    clip: str
    source: dict[str, Any]


# Columns of the tables in the terminal, which has no room for all.
_SHORT = ("method", "standing", "tokens", "cosine", "rare_cosine", "j_and_f", "psnr_db", "total_ms")
# Measures by which the tables can be sorted.
_SORTABLE = (
    "cosine", "rare_cosine", "relative_error", "psnr_db", "j_and_f", "rank_correlation", "tokens", "method_ms",
    "total_ms", "peak_mib",
)  # fmt: skip
# What --quick measures at most.
_QUICK_FRAMES, _QUICK_SIZE = 8, 112
_CHANGED = ("keep", "method", *map(delta_key, ("cosine", "j_and_f", "total_ms")))


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
    "fewtokens bench --compare before/results.json after/results.json",
    modes=(
        Mode(
            "compare", lambda values: values["compare"],
            (
                *names_of(ClipOptions, EncoderOptions, BudgetOptions, RunOptions, SelectOptions),
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
    ),
)  # fmt: skip
def bench(
    clip: ClipOptions,
    encoding: EncoderOptions,
    budget: BudgetOptions,
    run: RunOptions,
    videos: Annotated[
        list[Path] | None, typer.Argument(metavar="VIDEO_OR_FOLDER", help="Videos, or folders of videos.")
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
    """
    if compare:
        _compare(videos or [], as_json)
        return
    if target is None:
        raise ValueError("missing option '--out'; give --out FOLDER")
    check_folder(target)
    if not videos and clip.davis is None:
        raise ValueError("give videos, folders of videos, or --davis FOLDER")
    if len(videos or []) == 1:
        check_exists(*(videos or []))
    budgets = [parse_keep(part) for part in comma_separated(budget.keep)]
    if not budgets:
        raise ValueError("--keep must contain at least one budget, such as 0.1")
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
    from fewtokens.encoders import load_encoder, pick_device
    from fewtokens.evaluation.bench import FULL, encode, jobs, select_specs
    from fewtokens.evaluation.bench import measure as score

    loaded = load_encoder(encoding.encoder, device=run.device, dtype=encoding.dtype, batch=encoding.batch)
    specs = select_specs(",".join(budget.specs or ["all"]), loaded)
    check_no_selector(specs)
    selects = selection_of(selecting, question, run)
    if selects and selects["select"].sizes:
        raise ValueError(f"{selects['select'].name} chooses frames of several sizes, which bench does not compare")
    select = selects["select"].spec if selects else None
    sources = _sources(videos or [], clip.davis)[: 1 if quick else None]
    if measure == "psnr_db" and loaded.decode is None:
        raise ValueError(f"--sort psnr_db requires an encoder that decodes to frames, such as patches, not {loaded.id}")
    if measure == "rank_correlation" and len(sources) < 3:
        raise ValueError(f"--sort rank_correlation requires at least 3 clips, got {len(sources)}")
    settings = {
        "encoder": loaded.describe(),
        "dtype": encoding.dtype or "float32",
        "frames": clip.frames if select is None else None,
        **({} if select is None else {"selecting": plain_selection(selects)}),
        "size": clip.size,
        "davis_size": clip.davis_size,
        "seed": run.seed,
    }
    files.sweep(target)
    files.sweep(target / "features")
    check_settings(target / "settings.json", settings)
    source_notes, broken = _check_sources(target, sources)
    # By clip, method and budget: two runs that share a folder may both have written a row.
    results = {
        (row["clip"], row["method"], row["keep"]): row for row in current_keys(read_rows(target / "rows.jsonl", _Row))
    }
    requested = list(jobs([name for name, *_ in sources], specs, [k for k in budgets if k is not None], select))
    failed: list[dict[str, str]] = []
    shown_clips = _select_shown(sources, shown)
    images: dict[str, Any] = {}
    device = pick_device(run.device)
    finished = sum(job in results for job in requested)
    estimated = False
    log.print(f"{_count(len(sources), 'clip')}: all tokens, and {_count(len(specs), 'method')} at "
        f"{_count(len(budgets), 'budget')}: {len(requested)} measurements", highlight=False)  # fmt: skip
    with progress("bench", len(requested)) as advance:
        advance(finished)
        for name, path, masks in sources:
            missing = [job for job in requested if job[0] == name and job not in results]
            if not missing and name not in shown_clips:
                continue
            try:
                if name in broken:
                    raise ValueError(broken[name])
                chosen = _read_selected(name, path, clip.size, selects) if selects else None
                frames = clip.frames if chosen is None else len(chosen.frames)
                item = _read(name, path, masks, frames, clip.davis_size if masks else clip.size)
                if name in shown_clips:
                    images[name] = _thumbnails(item)
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
                    if selected is not None and select is not None and spec.startswith(f"{select} | "):
                        rest = spec.removeprefix(f"{select} | ")
                        row = score(selected, loaded, rest, keep, **options | {"shown": False})
                        results[job] = row | {"clip": name, "method": spec, "spec": f"{select} | {row['spec']}"}
                    else:
                        results[job] = score(encoded, loaded, spec, keep, **options)
                except ValueError as error:
                    # The table has no entry for a budget that the method cannot reach with this encoder.
                    fail(f"{name}, {spec} at {keep:g}: {error}")
                    continue
                append_row(target / "rows.jsonl", results[job])
                if spec == FULL and not estimated:
                    estimated = True
                    _log_estimate(time.perf_counter() - start, encoded, specs, requested[finished:], repeats)
                advance(finished)
        advance(len(requested))
    rows = [results[job] for job in requested if job in results]
    if not rows:
        raise ValueError("no clip could be read, so there is nothing to compare")
    header = {"settings": settings, "machine": _machine(device), "sources": source_notes}
    summary = _write(target, header, rows, images, measure)
    if as_json:
        print_json({"settings": settings, "summary": summary, "failed": failed, "page": str(target / "index.html")})
    else:
        _print(summary, target, measure)
    if failed:
        log.print(f"{len(failed)} of {len(sources)} clips failed")
        raise typer.Exit(1)


def _log_estimate(full: float, encoded: EncodedItem, specs: Sequence[str], left: Sequence[Any], repeats: int) -> None:
    """Prints about how long the remaining measurements take, from the first one, of all tokens.

    A method before or inside the encoder encodes the clip again for each run; the others are assumed to cost as much as
    the row of all tokens, most of which is the comparison with the full features. Clips are assumed to be similar.
    """
    from fewtokens.core import registry

    encoding = statistics.median(encoded.milliseconds) / 1000
    again = {spec for spec in specs if any(registry.get(name).stage != "tokens" for name, _ in registry.parse(spec))}
    seconds = sum(full + (repeats + 1) * encoding * (spec in again or spec == "full") for _, spec, _ in left)
    unit = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
    log.print(f"about {unit} for the remaining {len(left)} measurements", highlight=False)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _budget_text(keep: Any) -> str:
    return f"{100 * keep:g} %" if isinstance(keep, float) else f"{keep} tokens"


def _job_title(spec: str, keep: Any) -> str:
    from fewtokens.evaluation.bench import FULL

    return "all tokens" if spec == FULL else f"{spec} at {_budget_text(keep)}"


def _sources(videos: Sequence[Path], davis: Path | None) -> list[tuple[str, Path, list[Path] | None]]:
    """Returns a distinct name, the file and the masks of each clip.

    Raises:
        ValueError: a folder without videos.
    """
    from fewtokens.data.dense_sets import check_paired, davis_sequences
    from fewtokens.data.listing import VIDEOS

    files: list[Path] = []
    for video in videos:
        if not video.is_dir():
            files.append(video)
            continue
        inside = sorted(file for file in video.iterdir() if file.suffix.lower() in VIDEOS)
        if not inside:
            raise ValueError(f"{video}: no videos in this folder ({', '.join(sorted(VIDEOS))})")
        files += inside
    clips: list[tuple[Path, list[Path] | None]] = [(file, None) for file in unique_paths(files)]
    if davis is not None:
        sequences, _ = davis_sequences(davis, "all")
        for sequence in sequences:
            check_paired(sequence)
        clips += [(sequence.images[0].parent, sequence.labels) for sequence in sequences]
    names = distinct_names([path for path, _ in clips])
    return [(name, path, masks) for name, (path, masks) in zip(names, clips, strict=True)]


def _check_sources(
    target: Path, sources: Sequence[tuple[str, Path, list[Path] | None]]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Saves the source of each clip, or compares it with the source that an earlier run saved in this folder.

    Returns:
        The sources by clip name, and the errors of clips that cannot be read, by clip name.

    Raises:
        ValueError: the folder contains results of another file, or of an earlier state of this one.
    """
    notes = {row["clip"]: row["source"] for row in read_rows(target / "sources.jsonl", _SourceRow)}
    measured = {row["clip"] for row in read_rows(target / "rows.jsonl", _Row)}
    broken = {}
    new = []
    for name, path, masks in sources:
        try:
            source = source_now(path)
            if masks:
                labels = source_now(masks[0].parent)
                source["bytes"] += labels["bytes"]
                source["mtime_ns"] = max(source["mtime_ns"], labels["mtime_ns"])
        except (ValueError, OSError) as error:
            broken[name] = str(error)
            continue
        if name in measured:
            check_source(f"{name} in {target}", notes.get(name), source, "give another --out")
        elif notes.get(name) != source:
            new.append({"clip": name, "source": source})
    for row in new:
        append_row(target / "sources.jsonl", row)
        notes[row["clip"]] = row["source"]
    return notes, broken


def _select_shown(sources: Sequence[tuple[str, Path, list[Path] | None]], shown: int) -> set[str]:
    """Returns the clips to show on the page: the first ones, with at least one labeled clip if there is any."""
    names = [name for name, *_ in sources]
    labeled = [name for name, _, masks in sources if masks]
    first = names[:shown]
    if shown and labeled and not set(first) & set(labeled):
        first[-1] = labeled[0]
    return set(first)


def _read(name: str, path: Path, masks: list[Path] | None, frames: int, size: int) -> Item:
    """Reads a clip, and the masks of the same frames."""
    from fewtokens.data.masks import read_masks
    from fewtokens.evaluation.bench import Item

    video = read_video(path, ReadOptions(frames=frames, size=size))
    truth = None
    if masks:
        # Frame rate of a folder of images.
        indices = [round(float(second) * (video.fps or 25)) for second in video.times]
        truth = read_masks([masks[index] for index in indices])
    return Item(name, video.frames, video.times, truth)


def _read_selected(name: str, path: Path, size: int, selects: dict[str, Any]) -> Item:
    """Reads the frames of a clip that a selector chooses."""
    from fewtokens.evaluation.bench import Item

    video = read_video(path, ReadOptions(size=size), None, selects)
    return Item(name, video.frames, video.times)


def _thumbnails(item: Item) -> tuple[Any, list[str]]:
    """Returns small copies of the frames that the page shows, with captions."""
    import torch.nn.functional as F

    from fewtokens.evaluation.bench import shown_frame_indices

    indices = shown_frame_indices(len(item.frames))
    frames = item.frames[indices]
    height, width = (max(1, round(side * 360 / max(360, frames.shape[3]))) for side in frames.shape[2:])
    small = F.interpolate(frames.float(), (height, width), mode="bilinear", antialias=True).round().clamp(0, 255).byte()
    captions = [f"frame {n}" if item.times is None else f"{float(item.times[n]):.2f} s" for n in indices]
    return small, captions


def _machine(device: Any) -> dict[str, Any]:
    """Returns the machine and library versions, on which times depend."""
    import os
    import platform

    import torch

    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "torch": str(torch.__version__),
    }


def _write(
    target: Path, header: dict[str, Any], rows: list[dict[str, Any]], images: dict[str, Any], measure: str
) -> list[dict[str, Any]]:
    """Writes tables, plots and the page of a finished run; returns the summary."""
    from fewtokens.core import registry
    from fewtokens.core.files import write_text
    from fewtokens.evaluation.bench import FULL, unpack_assignment
    from fewtokens.evaluation.summary import as_csv, as_markdown, describe_columns, label_row, rank, summarize
    from fewtokens.show.bench_page import write_bench_page
    from fewtokens.show.plots import draw_trade_off

    summary = rank(summarize(rows), measure)
    scalars = [
        {name: value for name, value in label_row(row).items() if name not in ("vector", "assignment", "grid")}
        for row in rows
    ]
    settings = header["settings"]
    encoder = settings["encoder"]["id"]
    clips = len({row["clip"] for row in rows})
    # A video can be shorter than --frames; rows of earlier versions have no number of frames.
    counts = {row.get("frames") for row in rows}
    frames_text = (
        "as many frames as the selector chose" if settings["frames"] is None else f"up to {settings['frames']} frames"
    )
    if len(counts) == 1 and (frames := counts.pop()) is not None:
        frames_text = _count(frames, "frame")
    heading = f"Encoder {encoder}, {_count(clips, 'clip')} of {frames_text}."
    notes = describe_columns(summary, measure=measure)
    about = " ".join([heading, *notes])
    listed = "".join(f"- {line}\n" for line in notes)
    texts = {
        "results.json": json.dumps({**header, "about": about, "summary": summary, "rows": scalars}) + "\n",
        "results.csv": as_csv(scalars),
        "results.md": f"# fewtokens bench\n\n{heading}\n\n{listed}\n{as_markdown(summary)}",
    }
    for name, text in texts.items():
        write_text(target / name, text)
    plots = []
    if find_spec("matplotlib") is None:
        log.print("no plots: matplotlib is missing; install it with pip install 'fewtokens[show]'", highlight=False)
    plotted = ("cosine", "rare_cosine", "j_and_f", "psnr_db", "rank_correlation")
    caption = f"{_count(clips, 'clip')} of {frames_text}, encoder {encoder}."
    for name in plotted:
        plot = draw_trade_off(
            summary, name, target / f"{name}.png", baselines=registry.BASELINES, full=FULL, caption=caption
        )
        plots += [] if plot is None else [plot]
    full = {row["clip"]: row for row in rows if row["method"] == FULL}
    frames = {name: (*clip, full[name]["grid"]) for name, clip in images.items() if "grid" in full.get(name, {})}
    write_bench_page(
        summary,
        [label_row(row) for row in rows],
        frames,
        plots,
        target / "index.html",
        title="fewtokens bench",
        note="\n".join(
            [
                heading,
                *describe_columns(summary, ranges=False, measure=measure),
                "encoder ms (tables of one clip): time of the encoder alone, in ms. Empty where method ms is.",
                "Images (choose a clip): a color is one token that stands for several cells; dark cells are dropped.",
            ]
        ),
        unpack=unpack_assignment,
    )
    return summary


def _shown(name: str, line: dict[str, Any]) -> Any:
    """The value of a column in the terminal."""
    from fewtokens.evaluation.summary import label_of

    value = line.get(name)
    if name == "method":
        return label_of(line)
    if name == "tokens":
        return f"{value:.0f}, over budget" if line.get("over_budget") else round(line["tokens"])
    return "exact" if name == "psnr_db" and value == float("inf") else value


def _print(summary: list[dict[str, Any]], target: Path, measure: str) -> None:
    from fewtokens.evaluation.bench import FULL
    from fewtokens.evaluation.summary import describe_columns

    full = [line for line in summary if line["method"] == FULL]
    for budget in dict.fromkeys(line["keep"] for line in summary if line["method"] != FULL):
        lines = [*full, *(line for line in summary if line["keep"] == budget and line["method"] != FULL)]
        names = [name for name in _SHORT if any(line.get(name) is not None for line in lines)]
        title = f"{_budget_text(budget)} of the tokens" if isinstance(budget, float) else _budget_text(budget)
        out.print(table(title, [with_headings({name: _shown(name, line) for name in names}) for line in lines]))
    for mark in ("standing", "+ tome", "over budget"):
        for text in describe_columns(summary, measure=measure):
            if text.startswith(mark):
                out.print(text, highlight=False, markup=False)
    out.print(f"[bold]Page[/bold]   {escape(str(target / 'index.html'))}", highlight=False)
    out.print(f"[bold]Tables[/bold] {escape(str(target / 'results.md'))}, .csv, .json", highlight=False)


def _compare(files: Sequence[Path], as_json: bool) -> None:
    if len(files) != 2:
        raise ValueError(f"--compare requires two results.json files, got {len(files)}")
    check_exists(*files)
    from fewtokens.evaluation.summary import compare_runs

    lines, differences = compare_runs(*files)
    for difference in differences:
        note("difference:", difference)
    if as_json:
        print_json(lines)
        return
    names = [name for name in _CHANGED if any(name in line for line in lines)]
    rows = [with_headings({name: line.get("label" if name == "method" else name) for name in names}) for line in lines]
    out.print(table(f"{files[0]} → {files[1]}", rows))
