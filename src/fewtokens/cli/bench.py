"""`fewtokens bench`: which method keeps most at which budget and cost, on one's own videos and encoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
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
    EncoderOptions,
    JsonOption,
    ReadOptions,
    RunOptions,
    SizeOption,
    names_of,
)
from fewtokens.cli.pipelines import PATCHES, comma_separated, parse_keep, read_video
from fewtokens.cli.progress import progress
from fewtokens.cli.resume import (
    append_row,
    check_settings,
    check_source,
    distinct_names,
    unique_paths,
    read_rows,
    source_now,
)
from fewtokens.cli.tables import print_json, table
from fewtokens.core.keys import change, current_keys, headed

if TYPE_CHECKING:
    from fewtokens.evaluation.bench import Item


class _Row(TypedDict):
    """What is asked for of a row that an earlier run wrote."""

    clip: str
    method: str
    keep: float
    vector: list[Any]


class _Noted(TypedDict):
    clip: str
    source: dict[str, Any]


# What a table in the terminal has room for.
_SHORT = ("method", "tokens", "cosine", "rare_cosine", "j_and_f", "psnr_db", "total_ms")
_CHANGED = ("keep", "method", *map(change, ("cosine", "j_and_f", "total_ms")))


@dataclass(frozen=True)
class BudgetOptions:
    """What is compared, and at which budgets."""

    specs: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="SPEC",
            help="Comma-separated specs, or given several times; default: all. Baselines always take part.",
            rich_help_panel=METHOD,
        ),
    ] = None
    keep: Annotated[
        str,
        typer.Option(
            "--keep", metavar="K", help="Comma-separated budgets: 0.1 is a share, 32 a count.", rich_help_panel=METHOD
        ),
    ] = "0.25,0.1,0.05,0.02"


@dataclass(frozen=True)
class ClipOptions:
    """What is read."""

    frames: Annotated[
        int,
        typer.Option("--frames", min=1, help="Frames of a clip, spread evenly over it.", rich_help_panel=INPUT),
    ] = 32
    size: SizeOption = 224
    davis: Annotated[
        Path | None,
        typer.Option(
            "--davis",
            help="DAVIS folder: its sequences take part, with J and F of their masks.",
            rich_help_panel=INPUT,
        ),
    ] = None
    davis_size: Annotated[
        int, typer.Option("--davis-size", min=16, help="Short side of the frames of --davis.", rich_help_panel=INPUT)
    ] = 480


@verb(
    "fewtokens bench videos/ --encoder facebook/dinov2-small --frames 32 --out bench/",
    'fewtokens bench clip.mp4 --with "tome,kmeans,sttm(keep=0.1)" --keep 0.1 --out bench/',
    "fewtokens bench --compare before/results.json after/results.json",
    modes=(
        Mode(
            "compare", lambda values: values["compare"],
            (*names_of(ClipOptions, EncoderOptions, BudgetOptions, RunOptions), "target", "repeats", "shown"),
            "have no meaning with --compare",
        ),
        Mode(
            "without DAVIS", lambda values: not values["compare"] and values["davis"] is None, ("davis_size",),
            "is the size of --davis",
        ),
        Mode(
            "DAVIS alone", lambda values: values["davis"] is not None and not values["videos"], ("size",),
            "is the size of videos; that of DAVIS is --davis-size",
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
        list[Path] | None, typer.Argument(metavar="[VIDEO_OR_FOLDER]...", help="Videos, or folders of videos.")
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option("--out", help="Output folder. Resumes if it already contains a run.", rich_help_panel=OUTPUT),
    ] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, help="Timed runs of everything.", rich_help_panel=RUN)
    ] = 3,
    shown: Annotated[
        int, typer.Option("--show", min=0, help="Number of clips drawn on the page.", rich_help_panel=OUTPUT)
    ] = 3,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Instead: what changed between two results.json, given as arguments.",
            rich_help_panel=INPUT,
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare methods on your videos and your encoder: what they keep, what they cost.

    For each method, budget and clip: how much of the full features comes back, also in rare cells; on labeled
    sequences J and F of label propagation; tokens, operations, milliseconds, memory. random, uniform, fewer_frames,
    downsample and mean_pool always take part. A method that cannot go as low as a budget is merged down to it by tome.

    Writes results.json, results.csv, results.md, plots and a page, index.html.
    """
    if compare:
        _compare(videos or [], as_json)
        return
    if target is None:
        raise ValueError("give a folder to write to: --out FOLDER")
    check_folder(target)
    if len(videos or []) == 1:
        check_exists(*(videos or []))
    budgets = [parse_keep(part) for part in comma_separated(budget.keep)]
    if not budgets:
        raise ValueError("--keep needs at least one budget, such as 0.1")

    from fewtokens.core import files
    from fewtokens.encoders import load_encoder, pick_device
    from fewtokens.evaluation.bench import encode, jobs, measure, specs_of

    loaded = load_encoder(encoding.encoder, device=run.device, dtype=encoding.dtype, batch=encoding.batch)
    specs = specs_of(",".join(budget.specs or ["all"]), loaded)
    sources = _sources(videos or [], clip.davis)
    settings = {
        "encoder": loaded.describe(),
        "dtype": encoding.dtype or "float32",
        "frames": clip.frames,
        "size": clip.size,
        "davis_size": clip.davis_size,
        "seed": run.seed,
    }
    files.sweep(target)
    files.sweep(target / "features")
    check_settings(target / "settings.json", settings)
    noted, broken = _check_sources(target, sources)
    # A row by its clip, method and budget; two runs that share a folder may both have made one.
    made = {
        (row["clip"], row["method"], row["keep"]): row for row in current_keys(read_rows(target / "rows.jsonl", _Row))
    }
    wanted = list(jobs([name for name, *_ in sources], specs, [k for k in budgets if k is not None]))
    failed: list[dict[str, str]] = []
    drawn = _drawn(sources, shown)
    pictures: dict[str, Any] = {}
    where = pick_device(run.device)
    finished = sum(job in made for job in wanted)
    with progress("bench", len(wanted)) as advance:
        advance(finished)
        for name, path, masks in sources:
            left = [job for job in wanted if job[0] == name and job not in made]
            if not left and name not in drawn:
                continue
            try:
                if name in broken:
                    raise ValueError(broken[name])
                item = _read(name, path, masks, clip.frames, clip.davis_size if masks else clip.size)
                if name in drawn:
                    pictures[name] = _pictures(item)
                if not left:
                    continue
                advance(finished, title=f"{name}: encoding")
                cache = target / "features" / f"{name}.safetensors"
                encoded = encode(item, loaded, repeats=repeats, cache=cache)
            except (ValueError, OSError) as error:
                if len(sources) == 1:
                    raise
                fail(error)
                failed.append({"video": str(path), "error": " ".join(str(error).split())})
                continue
            options: dict[str, Any] = {"repeats": repeats, "seed": run.seed, "shown": name in drawn, "device": where}
            for job in left:
                _, spec, share = job
                advance(finished, title=f"{name}: {spec} {share:g}")
                try:
                    made[job] = measure(encoded, loaded, spec, share, **options)
                except ValueError as error:
                    # A budget that a method cannot reach in this encoder leaves a gap in the tables.
                    fail(f"{name}, {spec} at {share:g}: {error}")
                    continue
                append_row(target / "rows.jsonl", made[job])
                finished += 1
        advance(len(wanted))
    rows = [made[job] for job in wanted if job in made]
    if not rows:
        raise ValueError("nothing could be read, so there is nothing to compare")
    about = {"settings": settings, "machine": _machine(where), "sources": noted}
    report = _write(target, about, rows, pictures)
    if as_json:
        print_json({"settings": settings, "summary": report, "failed": failed, "page": str(target / "index.html")})
    else:
        _print(report, target)
    if failed:
        log.print(f"{len(failed)} of {len(sources)} clips failed")
        raise typer.Exit(1)


def _sources(videos: Sequence[Path], davis: Path | None) -> list[tuple[str, Path, list[Path] | None]]:
    """Name, file and masks of every clip; names are unlike one another.

    Raises:
        ValueError: nothing to bench on, a folder without videos.
    """
    from fewtokens.data.dense_sets import davis_sequences, paired
    from fewtokens.data.listing import VIDEOS

    files: list[Path] = []
    for video in videos:
        if not video.is_dir():
            files.append(video)
            continue
        inside = sorted(file for file in video.iterdir() if file.suffix.lower() in VIDEOS)
        if not inside:
            raise ValueError(f"{video}: a folder without videos ({', '.join(sorted(VIDEOS))})")
        files += inside
    found: list[tuple[Path, list[Path] | None]] = [(file, None) for file in unique_paths(files)]
    if davis is not None:
        sequences, _ = davis_sequences(davis, "all")
        for one in sequences:
            paired(one)
        found += [(one.pictures[0].parent, one.labels) for one in sequences]
    if not found:
        raise ValueError("give videos, folders of videos, or --davis FOLDER")
    names = distinct_names([path for path, _ in found])
    return [(name, path, masks) for name, (path, masks) in zip(names, found, strict=True)]


def _check_sources(
    target: Path, sources: Sequence[tuple[str, Path, list[Path] | None]]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Notes what each clip is made from, or compares it with what an earlier run in this folder noted.

    Returns:
        What each clip is made from, and what is wrong with those that are not there, by name.

    Raises:
        ValueError: rows of another file, or of this one as it was before.
    """
    noted = {row["clip"]: row["source"] for row in read_rows(target / "sources.jsonl", _Noted)}
    known = {row["clip"] for row in read_rows(target / "rows.jsonl", _Row)}
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
        if name in known:
            check_source(f"{name} in {target}", noted.get(name), source, "give another --out")
        elif noted.get(name) != source:
            new.append({"clip": name, "source": source})
    for row in new:
        append_row(target / "sources.jsonl", row)
        noted[row["clip"]] = row["source"]
    return noted, broken


def _drawn(sources: Sequence[tuple[str, Path, list[Path] | None]], shown: int) -> set[str]:
    """The clips that are drawn: the first ones, a labeled one among them if there is any."""
    names = [name for name, *_ in sources]
    labeled = [name for name, _, masks in sources if masks]
    first = names[:shown]
    if shown and labeled and not set(first) & set(labeled):
        first[-1] = labeled[0]
    return set(first)


def _read(name: str, path: Path, masks: list[Path] | None, frames: int, size: int) -> Item:
    """A clip, with its masks at the same frames."""
    from fewtokens.data.masks import read_masks
    from fewtokens.evaluation.bench import Item

    video = read_video(path, ReadOptions(frames=frames, size=size))
    truth = None
    if masks:
        # A folder of pictures has so many frames a second.
        numbers = [round(float(second) * (video.fps or 25)) for second in video.times]
        truth = read_masks([masks[number] for number in numbers])
    return Item(name, video.frames, video.times, truth)


def _pictures(item: Item) -> tuple[Any, list[str]]:
    """The frames that the page shows, small, with captions."""
    import torch.nn.functional as F

    from fewtokens.evaluation.bench import shown_frames

    picked = shown_frames(len(item.frames))
    frames = item.frames[picked]
    height, width = (max(1, round(side * 360 / max(360, frames.shape[3]))) for side in frames.shape[2:])
    small = F.interpolate(frames.float(), (height, width), mode="bilinear", antialias=True).round().clamp(0, 255).byte()
    captions = [f"frame {n}" if item.times is None else f"{float(item.times[n]):.2f} s" for n in picked]
    return small, captions


def _machine(device: Any) -> dict[str, Any]:
    """What times depend on beside the settings."""
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
    target: Path, told: dict[str, Any], rows: list[dict[str, Any]], pictures: dict[str, Any]
) -> list[dict[str, Any]]:
    """Everything that a finished run leaves behind; returns the summary."""
    from fewtokens.core import registry
    from fewtokens.core.files import write_text
    from fewtokens.evaluation.bench import FULL, unpacked
    from fewtokens.evaluation.summary import as_csv, as_markdown, summarise
    from fewtokens.profiling.prefill import QWEN2_7B
    from fewtokens.show.bench_page import write_bench_page
    from fewtokens.show.plots import draw_trade_off

    summary = summarise(rows)
    bare = [
        {name: value for name, value in row.items() if name not in ("vector", "assignment", "grid")} for row in rows
    ]
    settings = told["settings"]
    encoder = settings["encoder"]["id"]
    clips = len({row["clip"] for row in rows})
    about = (
        f"Encoder {encoder}, {clips} clips of up to {settings['frames']} frames (times: median, half the range). "
        f"GFLOPs count 2 for each multiply-accumulate; prefill is that of {QWEN2_7B.name}. "
        "Cosine and relative error: the features that come back against all features; rare cosine: in the 5 % of cells "
        "least like their frame's mean; J and F: label propagation from the first mask, at the native size and at "
        "480x880; nearest, ranks: which other clips are alike, by few tokens against all."
    )
    texts = {
        "results.json": json.dumps({**told, "about": about, "summary": summary, "rows": bare}) + "\n",
        "results.csv": as_csv(bare),
        "results.md": f"# fewtokens bench\n\n{about}\n\n{as_markdown(summary)}",
    }
    for name, text in texts.items():
        write_text(target / name, text)
    plots = []
    if find_spec("matplotlib") is None:
        log.print("no plots: they need matplotlib, pip install 'fewtokens[show]'", highlight=False)
    measures = ("cosine", "rare_cosine", "j_and_f", "psnr_db", "rank_correlation")
    caption = f"{clips} clips of up to {settings['frames']} frames, encoder {encoder}."
    for measure in measures:
        drawn = draw_trade_off(
            summary, measure, target / f"{measure}.png", baselines=registry.BASELINES, full=FULL, caption=caption
        )
        plots += [] if drawn is None else [drawn]
    full = {row["clip"]: row for row in rows if row["method"] == FULL}
    frames = {name: (*drawn, full[name]["grid"]) for name, drawn in pictures.items() if "grid" in full.get(name, {})}
    write_bench_page(
        summary,
        rows,
        frames,
        plots,
        target / "index.html",
        title="fewtokens bench",
        note=about + " In the frames, a color is one token of several cells; dark is dropped.",
        unpack=unpacked,
    )
    return summary


def _print(summary: list[dict[str, Any]], target: Path) -> None:
    from fewtokens.evaluation.bench import FULL

    full = [line for line in summary if line["method"] == FULL]
    for budget in dict.fromkeys(line["keep"] for line in summary if line["method"] != FULL):
        lines = [*full, *(line for line in summary if line["keep"] == budget and line["method"] != FULL)]
        names = [name for name in _SHORT if any(line.get(name) is not None for line in lines)]
        title = f"{100 * budget:g} % of the tokens" if isinstance(budget, float) else f"{budget} tokens"
        out.print(table(title, [headed({name: line.get(name) for name in names}) for line in lines]))
    out.print(f"[bold]Page[/bold]   {escape(str(target / 'index.html'))}", highlight=False)
    out.print(f"[bold]Tables[/bold] {escape(str(target / 'results.md'))}, .csv, .json", highlight=False)


def _compare(files: Sequence[Path], as_json: bool) -> None:
    from fewtokens.evaluation.summary import changes

    if len(files) != 2:
        raise ValueError(f"--compare takes two results.json, got {len(files)} files")
    lines, differences = changes(*files)
    for difference in differences:
        note("unlike:", difference)
    if as_json:
        print_json(lines)
        return
    names = [name for name in _CHANGED if any(name in line for line in lines)]
    rows = [headed({name: line.get(name) for name in names}) for line in lines]
    out.print(table(f"{files[0]} → {files[1]}", rows))
