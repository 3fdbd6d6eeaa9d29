"""Evaluates a frozen encoder by label propagation on the sequences of a data set, and writes the results."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import typer
from rich.markup import escape

from fewtokens.cli.command import Mode
from fewtokens.cli.console import fail, log, out
from fewtokens.cli.errors import check_folder
from fewtokens.cli.options import (
    INPUT,
    OUTPUT,
    PROTOCOL,
    EncoderOptions,
    JsonOption,
    MethodOptions,
    RunOptions,
    SettingsOption,
)
from fewtokens.cli.pipelines import PATCHES, comma_separated, make_pipeline
from fewtokens.cli.progress import progress
from fewtokens.cli.resume import append_row, check_settings, read_rows
from fewtokens.cli.tables import print_json, table, to_json
from fewtokens.core.identity import identity
from fewtokens.core.keys import current_keys, heading

if TYPE_CHECKING:
    from fewtokens.core.pipeline import Pipeline
    from fewtokens.data.dense_sets import SequenceFiles
    from fewtokens.evaluation.dense import SequenceResult
    from fewtokens.evaluation.label_propagation import Protocol

# Short headings, for which a terminal has room.
_SHORT = {
    "j_and_f_mean": "J&F", "j_mean": "J", "f_mean": "F", "j_decay": "J decay", "j_and_f_mean_880": "J&F 880",
}  # fmt: skip
# Frames per sequence, and number of sequences, on the contact sheet.
_SHEET_FRAMES, _SHEET_ROWS = 4, 12


DataOption = Annotated[
    Path, typer.Option("--data", help="Folder of the data set, in its public layout.", rich_help_panel=INPUT)
]
ListOption = Annotated[
    Path | None,
    typer.Option(
        "--list", help="Text file with the names of the sequences to score. Default: all.", rich_help_panel=INPUT
    ),
]
ProtocolOption = Annotated[
    str, typer.Option("--protocol", help="Protocol A; --set overrides its settings.", rich_help_panel=PROTOCOL)
]


@dataclass(frozen=True)
class DenseOutput:
    """Output files."""

    target: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Output folder for scores, labels and images. Resumes if it already contains a run.",
            rich_help_panel=OUTPUT,
        ),
    ] = None
    write_videos: Annotated[
        bool,
        typer.Option(
            "--write-videos",
            help="Also write a video of each sequence with its predicted labels.",
            rich_help_panel=OUTPUT,
        ),
    ] = False


@dataclass(frozen=True)
class DenseOptions(EncoderOptions, MethodOptions, RunOptions, DenseOutput):
    """Options that all data sets share."""

    only: Annotated[
        str | None, typer.Option("--only", help="Comma-separated sequence names. Default: all.", rich_help_panel=INPUT)
    ] = None
    settings: SettingsOption = None
    as_json: JsonOption = False


# Modes of all data sets.
MODES = (
    PATCHES,
    Mode(
        "nothing written", lambda values: values["target"] is None, ("write_videos",),
        "require --out FOLDER",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What differs between the data sets.

    Attributes:
        name: davis, jhmdb or vip.
        sequences: the sequences of the data set.
        listing: the list that names them.
        evaluate: function of a sequence, an encoder, a protocol and a progress callback to the results.
        summarize: function of all rows to one line per sequence, the scores, and notes on the scores.
        measure: key of the score in the captions of the contact sheet.
        more: further settings, saved with the run.
    """

    name: str
    sequences: list[SequenceFiles]
    listing: str
    evaluate: Callable[..., SequenceResult]
    summarize: Callable[[Sequence[dict[str, Any]]], tuple[list[dict[str, Any]], dict[str, Any], list[str]]]
    measure: str
    more: dict[str, Any]


def run_task(task: Task, data: Path, protocol_name: str, options: DenseOptions) -> None:
    """Evaluates the sequences that an earlier run has not finished; prints the scores and their protocol.

    Raises:
        ValueError: options that do not fit, a run with other settings in the folder, or no sequence could be read.
        typer.Exit: with code 1, if some sequences failed.
    """
    from fewtokens.core.files import sweep, write_text
    from fewtokens.evaluation.label_propagation import make_protocol

    target = options.target
    check_folder(target)
    protocol = make_protocol(task.name, protocol_name, options.settings or ())
    selected = _select(task.sequences, options.only)
    _check_names(selected)
    pipeline = make_pipeline(options, options, options)
    assert pipeline.encoder is not None
    described = pipeline.encoder.describe()
    settings = {
        "dataset": task.name, "data": str(data.resolve()), "encoder": described, "dtype": options.dtype or "float32",
        "spec": pipeline.spec, "protocol": asdict(protocol), "seed": options.seed, **task.more,
    }  # fmt: skip
    results: dict[str, dict[str, Any]] = {}
    if target is not None:
        check_settings(target / "settings.json", settings)
        sweep(target)
        results = {row["sequence"]: row for row in current_keys(read_rows(target / "rows.jsonl", _Row))}
        _check_files(selected, results, target)
    failed = _evaluate(task, selected, pipeline, protocol, results, target)
    rows = [results[files.name] for files in selected if files.name in results]
    if not rows:
        raise ValueError(f"none of {len(selected)} sequences could be evaluated: {failed[0]['error']}")
    lines, scores, notes = task.summarize(rows)
    grids = sorted({tuple(row["grid"]) for row in rows})
    retention = sum(row["tokens"] for row in rows) / sum(row["cells"] for row in rows)
    weights = f"weights {described['fingerprint'][:12]}" if described["fingerprint"] else "no weights"
    about = [
        protocol.describe(grids[0][0] if len(grids) == 1 else None, masks=task.name != "jhmdb"),
        f"{options.encoder} ({weights}): last-layer features, L2-normalized, without class and register tokens; "
        f"position embeddings resized to the grid, {_grids(grids)}; frames normalized for the encoder",
        f"{pipeline.spec or 'all tokens'}: {100 * retention:.2f} % of the tokens",
        f"{len(rows)} of {len(selected)} sequences, list: {task.listing}",
        *notes,
    ]
    report = {
        "scores": scores, "about": about, "settings": settings, "sequence_list": task.listing, "retention": retention,
        "sequences": lines, "failed": failed,
    }  # fmt: skip
    if target is not None:
        write_text(target / "results.json", to_json(report | {"rows": rows}))
        _draw(target, task, [files for files in selected if files.name in results], lines, options.write_videos)
    if options.as_json:
        print_json(report)
    else:
        _print_scores(task, lines, scores, about, target)
    if failed:
        log.print(f"{len(failed)} of {len(selected)} sequences failed; the scores exclude them")
        raise typer.Exit(1)


class _Row(TypedDict):
    """Keys that a row of an earlier run must have."""

    sequence: str
    grid: list[int]
    tokens: int
    cells: int


def _files_of(files: SequenceFiles) -> str:
    """Returns a hash of the images and labels of a sequence."""
    return identity([*files.images, *files.labels])


def _check_names(selected: Sequence[SequenceFiles]) -> None:
    """Raises ValueError if the results of two sequences, or of two frames, would have the same file name."""
    names: dict[str, str] = {}
    for files in selected:
        if (other := names.setdefault(files.name.casefold(), files.name)) is not files.name:
            raise ValueError(f"sequences {other} and {files.name} would have the same file name; rename one")
        stems = {picture.stem.casefold() for picture in files.images}
        if len(stems) < len(files.images):
            raise ValueError(
                f"{files.images[0].parent}: two images have the same name except for case or suffix; rename one"
            )


def _check_files(selected: Sequence[SequenceFiles], results: dict[str, dict[str, Any]], target: Path) -> None:
    """Raises ValueError if the files of a sequence have changed since an earlier run evaluated it."""
    for files in selected:
        if files.name not in results:
            continue
        if "files" not in results[files.name]:
            raise ValueError(
                f"{target} does not specify the files of {files.name} (an earlier version wrote it); give another --out"
            )
        if results[files.name]["files"] != _files_of(files):
            raise ValueError(
                f"{target}: {files.name} was evaluated on files in {files.images[0].parent} that have changed since; "
                "give another --out"
            )


def _has_labels(task: Task, files: SequenceFiles, target: Path | None) -> bool:
    """Whether the predicted labels of a finished sequence still exist; if not, it is evaluated again."""
    if target is None:
        return True
    try:
        labels = _predicted(target, task, files)
        return task.name == "jhmdb" or all(path.stat().st_size for path in labels)
    except (OSError, ValueError):
        return False


def _evaluate(
    task: Task, selected: list[SequenceFiles], pipeline: Pipeline, protocol: Protocol, results: dict[str, Any],
    target: Path | None,
) -> list[dict[str, str]]:  # fmt: skip
    """Adds missing rows to `results`; returns the errors. The error of a single sequence is raised."""
    from fewtokens.evaluation.dense import encode_with

    assert pipeline.encoder is not None
    encode = encode_with(pipeline)
    failed = []
    done = 0
    # Each frame counts twice: when it is encoded, and when labels are propagated to it.
    with progress(task.name, 2 * sum(len(files.images) for files in selected)) as advance:
        for files in selected:
            count = len(files.images)
            if files.name not in results or not _has_labels(task, files, target):
                pipeline.encoder.progress = partial(_report, advance, done, f"{files.name}: encoding")
                try:
                    output = task.evaluate(
                        files, encode, protocol, partial(_report, advance, done + count, f"{files.name}: propagating")
                    )
                except (ValueError, OSError) as error:
                    if len(selected) == 1:
                        raise
                    fail(error)
                    failed.append({"sequence": files.name, "error": " ".join(str(error).split())})
                else:
                    results[files.name] = output.row | {"files": _files_of(files)}
                    if target is not None:
                        _write_labels(target, files, output)
                        append_row(target / "rows.jsonl", results[files.name])
            done += 2 * count
            advance(done)
    return failed


def _report(advance: Callable[..., None], before: int, title: str, done: int, total: int) -> None:
    advance(before + done, title=title)


def _print_scores(
    task: Task, lines: list[dict[str, Any]], scores: dict[str, Any], about: list[str], target: Path | None
) -> None:
    out.print(table("", [{_SHORT.get(name, heading(name)): value for name, value in line.items()} for line in lines]))
    columns = scores if task.name == "davis" else {task.name: scores}
    measures = next(iter(columns.values()))
    rows = [{"measure": heading(name)} | {size: values[name] for size, values in columns.items()} for name in measures]
    out.print(table("", rows))
    for line in about:
        out.print(line, style="dim", highlight=False, markup=False)
    if target is not None:
        out.print(f"[bold]Written[/bold] {escape(str(target / 'results.json'))}, sheet.png", highlight=False)


def _select(sequences: list[SequenceFiles], only: str | None) -> list[SequenceFiles]:
    if only is None:
        return sequences
    names = comma_separated(only)
    by_name = {files.name: files for files in sequences}
    if absent := [name for name in names if name not in by_name]:
        raise ValueError(f"--only: no sequence {', '.join(absent)}; sequences: {', '.join(list(by_name)[:10])} ...")
    return [by_name[name] for name in dict.fromkeys(names)]


def _grids(grids: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, grid)) for grid in grids[:3]) + (" ..." if len(grids) > 3 else "")


def _write_labels(target: Path, files: SequenceFiles, output: SequenceResult) -> None:
    from fewtokens.core.files import write_text
    from fewtokens.data.masks import write_masks

    if output.masks is not None:
        write_masks(output.masks, [target / "masks" / files.name / f"{p.stem}.png" for p in files.images])
    if output.joints is not None:
        joints = [[[round(v, 2) for v in point] for point in frame] for frame in output.joints.tolist()]
        write_text(target / "joints" / f"{files.name}.json", json.dumps(joints))


def _draw(target: Path, task: Task, selected: list[SequenceFiles], lines: list[dict[str, Any]], video: bool) -> None:
    """Writes the contact sheet, with one row for each of some sequences, and missing videos if `video`."""
    from fewtokens.show.objects import fit_height
    from fewtokens.show.sheet import draw_contact_sheet
    from fewtokens.video import write

    score = {line["sequence"]: line[task.measure] for line in lines}
    images, captions = [], []
    for files in selected[:: -(-len(selected) // _SHEET_ROWS)]:
        count = len(_predicted(target, task, files))
        indices = sorted({round(n * (count - 1) / (_SHEET_FRAMES - 1)) for n in range(_SHEET_FRAMES)})
        indices += [indices[-1]] * (_SHEET_FRAMES - len(indices))
        images.append(_overlay(target, task, files, indices))
        captions += [
            f"{files.name}, {heading(task.measure)} {score[files.name]:.1f}",
            *(f"frame {n}" for n in indices[1:]),
        ]
    draw_contact_sheet(
        fit_height(images),
        captions,
        target / "sheet.png",
        title=f"Label propagation: {task.name}, {heading(task.measure)} over {len(selected)} sequences",
        caption="Predictions in color, ground truth in white. One row per sequence.",
        columns=_SHEET_FRAMES,
        most=len(captions),
    )
    for files in selected if video else ():
        path = target / "videos" / f"{files.name}.mp4"
        if not path.exists():
            every = range(len(_predicted(target, task, files)))
            # VIP contains every 25th frame of its videos.
            write(path, _overlay(target, task, files, every), 4 if task.name == "vip" else 24)


def _predicted(target: Path, task: Task, files: SequenceFiles) -> list[Any]:
    """Returns the predicted labels of each frame: joints, or paths of masks."""
    if task.name == "jhmdb":
        from fewtokens.core.files import read_json

        return read_json(target / "joints" / f"{files.name}.json", list[list[list[float]]])
    return [target / "masks" / files.name / f"{picture.stem}.png" for picture in files.images]


def _overlay(target: Path, task: Task, files: SequenceFiles, indices: Sequence[int]) -> Any:
    """Returns frames uint8 [n,3,H,W] with the predicted labels in color and the ground truth in white."""
    import torch

    from fewtokens.data.masks import read_masks
    from fewtokens.evaluation.dense import read_frames
    from fewtokens.evaluation.pck import read_joints
    from fewtokens.show.objects import overlay_joints, overlay_objects

    frames, _ = read_frames([files.images[n] for n in indices], None)
    labels = _predicted(target, task, files)
    if task.name == "jhmdb":
        index = list(indices)
        return overlay_joints(frames, torch.tensor(labels)[index], read_joints(files.labels[0])[index])
    truth = read_masks([files.labels[n] for n in indices], values=task.name == "vip")
    return overlay_objects(frames, read_masks([labels[n] for n in indices]), truth)
