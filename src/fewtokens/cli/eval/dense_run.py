"""How a frozen encoder is judged by label propagation on a data set: sequence by sequence, with what is written."""

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
    from fewtokens.evaluation.dense import Judged
    from fewtokens.evaluation.label_propagation import Protocol

# Names that a terminal has room for.
_SHORT = {
    "j_and_f_mean": "J&F", "j_mean": "J", "f_mean": "F", "j_decay": "J decay", "j_and_f_mean_880": "J&F 880",
}  # fmt: skip
# Frames of a sequence, and sequences, on the sheet.
_SHEET_FRAMES, _SHEET_ROWS = 4, 12


DataOption = Annotated[
    Path, typer.Option("--data", help="Folder of the data set, in its public layout.", rich_help_panel=INPUT)
]
ListOption = Annotated[
    Path | None, typer.Option("--list", help="Text file with the names of what is scored.", rich_help_panel=INPUT)
]
ProtocolOption = Annotated[str, typer.Option("--protocol", help="A; see --set.", rich_help_panel=PROTOCOL)]


@dataclass(frozen=True)
class DenseOutput:
    """Where scores go."""

    target: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Output folder for scores, labels and pictures. Resumes if it already contains a run.",
            rich_help_panel=OUTPUT,
        ),
    ] = None
    write_videos: Annotated[
        bool,
        typer.Option(
            "--write-videos", help="Also write each sequence with its labels as a video.", rich_help_panel=OUTPUT
        ),
    ] = False


@dataclass(frozen=True)
class DenseOptions(EncoderOptions, MethodOptions, RunOptions, DenseOutput):
    """What all data sets share beside the data."""

    only: Annotated[
        str | None, typer.Option("--only", help="Comma-separated sequence names.", rich_help_panel=INPUT)
    ] = None
    settings: SettingsOption = None
    as_json: JsonOption = False


# Options without a meaning, for all data sets.
MODES = (
    PATCHES,
    Mode(
        "nothing written", lambda values: values["target"] is None, ("write_videos",),
        "needs a folder to write to: --out FOLDER",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What differs between the data sets.

    Attributes:
        name: davis, jhmdb or vip. sequences: what it has. listing: the list that named them.
        judge: sequence, encode, protocol and progress to what came of it.
        summarize: rows to a line for each sequence, the scores, and what must be said of them.
        measure: the column of a line that stands beside its pictures.
        more: settings of its own.
    """

    name: str
    sequences: list[SequenceFiles]
    listing: str
    judge: Callable[..., Judged]
    summarize: Callable[[Sequence[dict[str, Any]]], tuple[list[dict[str, Any]], dict[str, Any], list[str]]]
    measure: str
    more: dict[str, Any]


def run_task(task: Task, data: Path, protocol: str, options: DenseOptions) -> None:
    """Judges one sequence after the other, those that an earlier run left; tells scores with their protocol.

    Raises:
        ValueError: options that do not fit, another run in the folder, no sequence that could be judged.
        typer.Exit: with 1, if some could not.
    """
    from fewtokens.core.files import sweep, write_text
    from fewtokens.evaluation.label_propagation import make_protocol

    target = options.target
    check_folder(target)
    how = make_protocol(task.name, protocol, options.settings or ())
    chosen = _pick(task.sequences, options.only)
    _check_names(chosen)
    pipeline = make_pipeline(options, options, options)
    assert pipeline.encoder is not None
    described = pipeline.encoder.describe()
    settings = {
        "dataset": task.name, "data": str(data.resolve()), "encoder": described, "dtype": options.dtype or "float32",
        "spec": pipeline.spec, "protocol": asdict(how), "seed": options.seed, **task.more,
    }  # fmt: skip
    made: dict[str, dict[str, Any]] = {}
    if target is not None:
        check_settings(target / "settings.json", settings)
        sweep(target)
        made = {row["sequence"]: row for row in current_keys(read_rows(target / "rows.jsonl", _Row))}
        _check_files(chosen, made, target)
    failed = _judge(task, chosen, pipeline, how, made, target)
    rows = [made[files.name] for files in chosen if files.name in made]
    if not rows:
        raise ValueError(f"none of {len(chosen)} sequences could be judged: {failed[0]['error']}")
    lines, scores, notes = task.summarize(rows)
    grids = sorted({tuple(row["grid"]) for row in rows})
    share = sum(row["tokens"] for row in rows) / sum(row["cells"] for row in rows)
    weights = f"weights {described['fingerprint'][:12]}" if described["fingerprint"] else "no weights"
    about = [
        how.describe(grids[0][0] if len(grids) == 1 else None, masks=task.name != "jhmdb"),
        f"{options.encoder} ({weights}): its last features, L2-normalised, without class and register tokens; "
        f"positions resized to the grid, {_grids(grids)}; frames normalised as the encoder says",
        f"{pipeline.spec or 'all tokens'}: {100 * share:.2f} % of the tokens",
        f"{len(rows)} of {len(chosen)} sequences, list: {task.listing}",
        *notes,
    ]
    report = {
        "scores": scores, "about": about, "settings": settings, "sequence_list": task.listing, "retention": share,
        "sequences": lines, "failed": failed,
    }  # fmt: skip
    if target is not None:
        write_text(target / "results.json", to_json(report | {"rows": rows}))
        _draw(target, task, [files for files in chosen if files.name in made], lines, options.write_videos)
    if options.as_json:
        print_json(report)
    else:
        _tell(task, lines, scores, about, target)
    if failed:
        log.print(f"{len(failed)} of {len(chosen)} sequences failed; the scores are those of the others")
        raise typer.Exit(1)


class _Row(TypedDict):
    """What is asked for of a row that an earlier run wrote."""

    sequence: str
    grid: list[int]
    tokens: int
    cells: int


def _files_of(files: SequenceFiles) -> str:
    """The identity of a sequence: its pictures and labels."""
    return identity([*files.pictures, *files.labels])


def _check_names(chosen: Sequence[SequenceFiles]) -> None:
    """Raises a ValueError where the results of two sequences, or of two frames, would have one name."""
    names: dict[str, str] = {}
    for files in chosen:
        if (other := names.setdefault(files.name.casefold(), files.name)) is not files.name:
            raise ValueError(f"two sequences have the same name for files, {other} and {files.name}; rename one")
        stems = {picture.stem.casefold() for picture in files.pictures}
        if len(stems) < len(files.pictures):
            raise ValueError(f"{files.pictures[0].parent}: two pictures have the same name but for case or suffix")


def _check_files(chosen: Sequence[SequenceFiles], made: dict[str, dict[str, Any]], target: Path) -> None:
    """Raises a ValueError where an earlier run judged a sequence whose files have changed since."""
    for files in chosen:
        if files.name not in made:
            continue
        if "files" not in made[files.name]:
            raise ValueError(
                f"{target} does not say which files of {files.name} it was made from (an earlier version wrote it); "
                "give another --out"
            )
        if made[files.name]["files"] != _files_of(files):
            raise ValueError(
                f"{target}: {files.name} was judged on files of {files.pictures[0].parent} that have changed since; "
                "give another --out"
            )


def _is_drawn(task: Task, files: SequenceFiles, target: Path | None) -> bool:
    """Whether what was predicted of a judged sequence is still there to be drawn; it is judged again where not."""
    if target is None:
        return True
    try:
        found = _labeled(target, task, files)
        return task.name == "jhmdb" or all(path.stat().st_size for path in found)
    except (OSError, ValueError):
        return False


def _judge(
    task: Task, chosen: list[SequenceFiles], pipeline: Pipeline, how: Protocol, made: dict[str, Any],
    target: Path | None,
) -> list[dict[str, str]]:  # fmt: skip
    """Adds the rows that are missing to `made`; returns what failed, unless there is only one sequence."""
    from fewtokens.evaluation.dense import encode_with

    assert pipeline.encoder is not None
    encode = encode_with(pipeline)
    failed = []
    done = 0
    # A frame counts twice: when it is encoded, and when it has its labels.
    with progress(task.name, 2 * sum(len(files.pictures) for files in chosen)) as advance:
        for files in chosen:
            count = len(files.pictures)
            if files.name not in made or not _is_drawn(task, files, target):
                pipeline.encoder.progress = partial(_report, advance, done, f"{files.name}: encoding")
                try:
                    judged = task.judge(
                        files, encode, how, partial(_report, advance, done + count, f"{files.name}: propagating")
                    )
                except (ValueError, OSError) as error:
                    if len(chosen) == 1:
                        raise
                    fail(error)
                    failed.append({"sequence": files.name, "error": " ".join(str(error).split())})
                else:
                    made[files.name] = judged.row | {"files": _files_of(files)}
                    if target is not None:
                        _write_labels(target, files, judged)
                        append_row(target / "rows.jsonl", made[files.name])
            done += 2 * count
            advance(done)
    return failed


def _report(advance: Callable[..., None], before: int, title: str, now: int, in_all: int) -> None:
    advance(before + now, title=title)


def _tell(
    task: Task, lines: list[dict[str, Any]], scores: dict[str, Any], about: list[str], target: Path | None
) -> None:
    out.print(table("", [{_SHORT.get(name, heading(name)): value for name, value in line.items()} for line in lines]))
    columns = scores if task.name == "davis" else {task.name: scores}
    measures = next(iter(columns.values()))
    rows = [{"measure": heading(name)} | {at: part[name] for at, part in columns.items()} for name in measures]
    out.print(table("", rows))
    for line in about:
        out.print(line, style="dim", highlight=False, markup=False)
    if target is not None:
        out.print(f"[bold]Written[/bold] {escape(str(target / 'results.json'))}, sheet.png", highlight=False)


def _pick(found: list[SequenceFiles], only: str | None) -> list[SequenceFiles]:
    if only is None:
        return found
    names = comma_separated(only)
    by_name = {files.name: files for files in found}
    if absent := [name for name in names if name not in by_name]:
        raise ValueError(f"--only names {', '.join(absent)}; there are {', '.join(list(by_name)[:10])} ...")
    return [by_name[name] for name in dict.fromkeys(names)]


def _grids(grids: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, grid)) for grid in grids[:3]) + (" ..." if len(grids) > 3 else "")


def _write_labels(target: Path, files: SequenceFiles, judged: Judged) -> None:
    from fewtokens.core.files import write_text
    from fewtokens.data.masks import write_masks

    if judged.masks is not None:
        write_masks(judged.masks, [target / "masks" / files.name / f"{p.stem}.png" for p in files.pictures])
    if judged.joints is not None:
        joints = [[[round(v, 2) for v in point] for point in frame] for frame in judged.joints.tolist()]
        write_text(target / "joints" / f"{files.name}.json", json.dumps(joints))


def _draw(target: Path, task: Task, chosen: list[SequenceFiles], lines: list[dict[str, Any]], video: bool) -> None:
    """The contact sheet, a row for each of some sequences, and the videos that are not there yet."""
    from fewtokens.show.objects import fitted
    from fewtokens.show.sheet import draw_contact_sheet
    from fewtokens.video import write

    score = {line["sequence"]: line[task.measure] for line in lines}
    pictures, captions = [], []
    for files in chosen[:: -(-len(chosen) // _SHEET_ROWS)]:
        count = len(_labeled(target, task, files))
        picked = sorted({round(n * (count - 1) / (_SHEET_FRAMES - 1)) for n in range(_SHEET_FRAMES)})
        picked += [picked[-1]] * (_SHEET_FRAMES - len(picked))
        pictures.append(_drawn(target, task, files, picked))
        captions += [
            f"{files.name}, {heading(task.measure)} {score[files.name]:.1f}",
            *(f"frame {n}" for n in picked[1:]),
        ]
    draw_contact_sheet(
        fitted(pictures),
        captions,
        target / "sheet.png",
        title=f"Label propagation: {task.name}, {heading(task.measure)} over {len(chosen)} sequences",
        caption="Predictions in color, ground truth in white. One row per sequence.",
        columns=_SHEET_FRAMES,
        most=len(captions),
    )
    for files in chosen if video else ():
        path = target / "videos" / f"{files.name}.mp4"
        if not path.exists():
            every = range(len(_labeled(target, task, files)))
            # VIP has one frame in 25.
            write(path, _drawn(target, task, files, every), 4 if task.name == "vip" else 24)


def _labeled(target: Path, task: Task, files: SequenceFiles) -> list[Any]:
    """What was predicted, by frame: joints, or files of masks."""
    if task.name == "jhmdb":
        from fewtokens.core.files import read_json

        return read_json(target / "joints" / f"{files.name}.json", list[list[list[float]]])
    return [target / "masks" / files.name / f"{picture.stem}.png" for picture in files.pictures]


def _drawn(target: Path, task: Task, files: SequenceFiles, picked: Sequence[int]) -> Any:
    """Frames uint8 [n,3,H,W] with what was predicted, and the truth in white."""
    import torch

    from fewtokens.data.masks import read_masks
    from fewtokens.evaluation.dense import read_frames
    from fewtokens.evaluation.pck import read_joints
    from fewtokens.show.objects import overlay_joints, overlay_objects

    frames, _ = read_frames([files.pictures[n] for n in picked], None)
    labels = _labeled(target, task, files)
    if task.name == "jhmdb":
        index = list(picked)
        return overlay_joints(frames, torch.tensor(labels)[index], read_joints(files.labels[0])[index])
    truth = read_masks([files.labels[n] for n in picked], values=task.name == "vip")
    return overlay_objects(frames, read_masks([labels[n] for n in picked]), truth)
