"""`fewtokens eval davis`, `jhmdb` and `vip`: a frozen encoder judged by label propagation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.common import (
    BatchOption,
    DeviceOption,
    DtypeOption,
    EncoderOption,
    JsonOption,
    KeepOption,
    SeedOption,
    fail,
    log,
    make_pipeline,
    out,
    print_json,
    progress,
    table,
    verb,
)
from fewtokens.cli.resume import append_row, check_settings, read_rows

if TYPE_CHECKING:
    from fewtokens.data.dense_sets import SequenceFiles
    from fewtokens.evaluate.dense import Judged

app = typer.Typer()

DataOption = Annotated[Path, typer.Option("--data", help="The folder of the data set, in its public layout.")]
SpecOption = Annotated[
    str,
    typer.Option("--with", metavar="SPEC", help='Methods in between, such as "tome(keep=0.1)"; all tokens if none.'),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any number of the protocol: radius=12, top=5.")
]
OnlyOption = Annotated[str | None, typer.Option("--only", help="Some sequences, with commas.")]
ListOption = Annotated[Path | None, typer.Option("--list", help="A text file that names what is scored.")]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="A folder for scores, labels and pictures; a stopped run goes on there.")
]
VideoOption = Annotated[bool, typer.Option("--video", help="Also write each sequence with its labels as a video.")]

# Frames, labels and what else is there of one judged sequence: as it is drawn.
_SHEET_FRAMES, _SHEET_ROWS = 4, 12


@app.command(
    epilog="Examples:  [bold]fewtokens eval davis --data DAVIS/ --encoder run/model --protocol A --out scores/[/bold] "
    "  |   [bold]fewtokens eval davis --data DAVIS/ --encoder facebook/dinov2-small --protocol B "
    '--with "tome(keep=0.25)" --size both[/bold]'
)
@verb
def davis(
    data: DataOption,
    encoder: EncoderOption = "patches",
    protocol: Annotated[str, typer.Option("--protocol", help="A, B or B-rsp; see --set.")] = "A",
    changes: SetOption = None,
    spec: SpecOption = "",
    keep: KeepOption = None,
    size: Annotated[str, typer.Option("--size", help="Scored at: native, 880 (everything at 480x880) or both.")] = (
        "native"
    ),
    split: Annotated[
        str | None,
        typer.Option("--split", help="A list in ImageSets, or all; 2017/val, 2016/val or all, what there is, if none."),
    ] = None,
    only: OnlyOption = None,
    target: OutOption = None,
    video: VideoOption = False,
    batch: BatchOption = 8,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """J and F on DAVIS 2016 or 2017: the first frame's masks, carried through each video by the features.

    With --out: results.json, masks/ in the layout and palette that the official tool scores, sheet.png (white: the
    truth). Scores at 480x880 are higher in F: boundaries match within 9 px there, and within 8 px at 480x854.
    """
    from fewtokens.data.dense_sets import davis_sequences
    from fewtokens.evaluate import dense

    if size not in ("native", "880", "both"):
        raise ValueError(f"--size must be native, 880 or both, got {size!r}")
    sizes = dense.SIZES if size == "both" else (size,)
    found, said = davis_sequences(data, split)

    def judge(files: SequenceFiles, encode: Any, how: Any, report: Any) -> Judged:
        return dense.davis(files, encode, how, sizes, progress=report)

    def summarise(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any], list[str]]:
        lines, tables = dense.davis_summary(rows)
        notes = []
        for at in sizes:
            scored = {(tuple(row["scores"][at]["size"]), row["scores"][at]["tolerance"]) for row in rows}
            each = ", ".join(f"{px} px at {h}x{w}" for (h, w), px in sorted(scored))
            notes.append(f"{at}: boundaries match within {each}")
        if "880" in sizes:
            notes.append("F at 480x880 is not comparable with F at the native size, which is stricter")
        return lines, tables if len(sizes) > 1 else tables[sizes[0]], notes

    _run(
        "davis", data, found, said, only, encoder, protocol, changes, spec, keep, target, video, batch, device, dtype,
        seed, as_json, judge, summarise, {"sizes": list(sizes)},
    )  # fmt: skip


@app.command(
    epilog="Examples:  [bold]fewtokens eval jhmdb --data jhmdb/ --encoder run/model --list testlist.txt[/bold]   |   "
    "[bold]fewtokens eval jhmdb --data jhmdb/ --encoder facebook/dinov2-small --set context=7 --out scores/[/bold]"
)
@verb
def jhmdb(
    data: DataOption,
    encoder: EncoderOption = "patches",
    protocol: Annotated[str, typer.Option("--protocol", help="A; see --set.")] = "A",
    changes: SetOption = None,
    spec: SpecOption = "",
    keep: KeepOption = None,
    listing: ListOption = None,
    only: OnlyOption = None,
    target: OutOption = None,
    video: VideoOption = False,
    batch: BatchOption = 16,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """PCK@0.1 and PCK@0.2 on JHMDB: 15 joints of the first frame, carried through each clip by the features.

    Found within that share of 0.6 times the diagonal of the box of the joints; the mean of the joints' own percentages.
    Needs scipy: pip install 'fewtokens[eval]'.
    """
    from fewtokens.data.dense_sets import jhmdb_clips
    from fewtokens.evaluate import dense

    found, said = jhmdb_clips(data, listing)

    def judge(files: SequenceFiles, encode: Any, how: Any, report: Any) -> Judged:
        return dense.jhmdb(files, encode, how, progress=report)

    _run(
        "jhmdb", data, found, said, only, encoder, protocol, changes, spec, keep, target, video, batch, device, dtype,
        seed, as_json, judge, lambda rows: (*dense.jhmdb_summary(rows), []), {},
    )  # fmt: skip


@app.command(
    epilog="Examples:  [bold]fewtokens eval vip --data VIP/ --encoder run/model --out scores/[/bold]   |   "
    "[bold]fewtokens eval vip --data VIP/ --encoder facebook/dinov2-small --set 'size=long 560' --set context=4[/bold]"
)
@verb
def vip(
    data: DataOption,
    encoder: EncoderOption = "patches",
    protocol: Annotated[str, typer.Option("--protocol", help="A; see --set.")] = "A",
    changes: SetOption = None,
    spec: SpecOption = "",
    keep: KeepOption = None,
    listing: ListOption = None,
    only: OnlyOption = None,
    target: OutOption = None,
    video: VideoOption = False,
    batch: BatchOption = 8,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Mean IoU of 20 classes on VIP: parts of people in the first frame, carried through each video by the features.

    The background counts as a class, and so does the first frame, which is given.
    """
    from fewtokens.data.dense_sets import vip_videos
    from fewtokens.evaluate import dense

    found, said = vip_videos(data, listing)

    def judge(files: SequenceFiles, encode: Any, how: Any, report: Any) -> Judged:
        return dense.vip(files, encode, how, progress=report)

    _run(
        "vip", data, found, said, only, encoder, protocol, changes, spec, keep, target, video, batch, device, dtype,
        seed, as_json, judge, lambda rows: (*dense.vip_summary(rows), []), {},
    )  # fmt: skip


def _run(
    task: str, data: Path, found: list[SequenceFiles], said: str, only: str | None, encoder: str, protocol: str,
    changes: list[str] | None, spec: str, keep: str | None, target: Path | None, video: bool, batch: int, device: str,
    dtype: str | None, seed: int, as_json: bool, judge: Callable[..., Judged],
    summarise: Callable[[Sequence[dict[str, Any]]], tuple[list[dict[str, Any]], dict[str, Any], list[str]]],
    more: dict[str, Any],
) -> None:  # fmt: skip
    """Judges one sequence after the other, those that an earlier run left; tells scores with their protocol."""
    from fewtokens.evaluate.dense import encode_with
    from fewtokens.evaluate.label_propagation import make_protocol

    if video and target is None:
        raise ValueError("--video needs a folder to write to: --out FOLDER")
    if target is not None and target.exists() and not target.is_dir():
        raise ValueError(f"--out {target} is a file; give a folder")
    how = make_protocol(task, protocol, changes or ())
    chosen = _pick(found, only)
    pipeline = make_pipeline(spec, keep, seed, encoder, device, dtype, batch)
    assert pipeline.encoder is not None
    settings = {
        "set": task, "data": str(data.resolve()), "encoder": pipeline.encoder.describe(), "dtype": dtype or "float32",
        "with": pipeline.spec, "protocol": asdict(how), "seed": seed, **more,
    }  # fmt: skip
    made: dict[str, dict[str, Any]] = {}
    if target is not None:
        check_settings(target / "settings.json", settings)
        made = {row["sequence"]: row for row in read_rows(target / "rows.jsonl")}
    failed: list[dict[str, str]] = []
    encode = encode_with(pipeline)
    with progress(task, 2 * sum(len(files.pictures) for files in chosen)) as advance:
        done = 0
        for files in chosen:
            start = done

            def report(
                now: int,
                in_all: int,
                what: str = "propagating",
                add: int = 1,
                start: int = start,
                name: str = files.name,
            ) -> None:
                advance(start + add * in_all + now, title=f"{name}: {what}")

            if files.name not in made:
                # The first half of a sequence's frames on the bar are those that are encoded.
                pipeline.encoder.progress = lambda now, in_all, report=report: report(now, in_all, "encoding", 0)
                try:
                    judged = judge(files, encode, how, report)
                except (ValueError, OSError) as error:
                    if len(chosen) == 1:
                        raise
                    fail(error)
                    failed.append({"sequence": files.name, "error": " ".join(str(error).split())})
                else:
                    made[files.name] = judged.row
                    if target is not None:
                        _write_labels(target, files, judged)
                        append_row(target / "rows.jsonl", judged.row)
            done += 2 * len(files.pictures)
            advance(done)
    rows = [made[files.name] for files in chosen if files.name in made]
    if not rows:
        raise ValueError(f"none of {len(chosen)} sequences could be judged: {failed[0]['error']}")
    lines, scores, notes = summarise(rows)
    grids = sorted({tuple(row["grid"]) for row in rows})
    share = sum(row["tokens"] for row in rows) / sum(row["cells"] for row in rows)
    about = [
        how.describe(grids[0][0] if len(grids) == 1 else None, masks=task != "jhmdb"),
        f"{encoder} {pipeline.encoder.describe()['weights'] or 'without weights'}"[: len(encoder) + 13]
        + f", features after the last norm, class and register tokens left out; grid {_grids(grids)}",
        f"{pipeline.spec or 'all tokens'}: {100 * share:.2f} % of the tokens",
        f"{len(rows)} of {len(chosen)} sequences, list: {said}",
        *notes,
    ]
    report_all = {
        "scores": scores, "about": about, "settings": settings, "list": said, "sequences": lines, "failed": failed,
        "share": share,
    }  # fmt: skip
    if target is not None:
        from fewtokens.files import whole_file

        with whole_file(target / "results.json") as temporary:
            temporary.write_text(json.dumps(report_all | {"rows": rows}, indent=1) + "\n")
        _draw(target, task, [files for files in chosen if files.name in made], lines, video)
    if as_json:
        print_json(report_all)
    else:
        out.print(table("", lines))
        nested = scores if all(isinstance(part, dict) for part in scores.values()) else {task: scores}
        out.print(table("", [{task: name, **part} for name, part in nested.items()]))
        for line in about:
            out.print(line, style="dim", highlight=False, markup=False)
        if target is not None:
            out.print(f"[bold]Written[/bold] {escape(str(target / 'results.json'))}, sheet.png", highlight=False)
    if failed:
        log.print(f"{len(failed)} of {len(chosen)} sequences failed; the scores are those of the others")
        raise typer.Exit(1)


def _pick(found: list[SequenceFiles], only: str | None) -> list[SequenceFiles]:
    if only is None:
        return found
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    by_name = {files.name: files for files in found}
    if absent := [name for name in wanted if name not in by_name]:
        raise ValueError(f"--only names {', '.join(absent)}; there are {', '.join(list(by_name)[:10])} ...")
    return [by_name[name] for name in dict.fromkeys(wanted)]


def _grids(grids: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, grid)) for grid in grids[:3]) + (" ..." if len(grids) > 3 else "")


def _write_labels(target: Path, files: SequenceFiles, judged: Judged) -> None:
    from fewtokens.data.masks import write_masks
    from fewtokens.files import whole_file

    if judged.masks is not None:
        write_masks(judged.masks, [target / "masks" / files.name / f"{p.stem}.png" for p in files.pictures])
    if judged.joints is not None:
        with whole_file(target / "joints" / f"{files.name}.json") as temporary:
            temporary.write_text(json.dumps([[[round(v, 2) for v in p] for p in t] for t in judged.joints.tolist()]))


def _draw(target: Path, task: str, chosen: list[SequenceFiles], lines: list[dict[str, Any]], video: bool) -> None:
    """The contact sheet, a row for each of some sequences, and the videos that are not there yet."""
    from fewtokens.show.objects import fitted
    from fewtokens.show.sheet import draw_contact_sheet
    from fewtokens.video import write

    measure = {"davis": "J&F-Mean", "jhmdb": "PCK@0.1", "vip": "mIoU"}[task]
    score = {line["sequence"]: next(v for k, v in line.items() if k.startswith(measure)) for line in lines}
    pictures, captions = [], []
    for files in chosen[:: -(-len(chosen) // _SHEET_ROWS)]:
        count = len(_labelled(target, task, files))
        picked = sorted({round(n * (count - 1) / (_SHEET_FRAMES - 1)) for n in range(_SHEET_FRAMES)})
        picked += [picked[-1]] * (_SHEET_FRAMES - len(picked))
        pictures.append(_drawn(target, task, files, picked))
        captions += [f"{files.name}, {measure} {score[files.name]:.1f}", *(f"frame {n}" for n in picked[1:])]
    draw_contact_sheet(fitted(pictures), captions, target / "sheet.png", columns=_SHEET_FRAMES, most=len(captions))
    for files in chosen if video else ():
        path = target / "videos" / f"{files.name}.mp4"
        if not path.exists():
            write(
                path,
                _drawn(target, task, files, range(len(_labelled(target, task, files)))),
                24 if task != "vip" else 4,
            )


def _labelled(target: Path, task: str, files: SequenceFiles) -> list[Any]:
    """What was predicted, by frame: joints, or files of masks."""
    if task == "jhmdb":
        return json.loads((target / "joints" / f"{files.name}.json").read_text())
    return [target / "masks" / files.name / f"{picture.stem}.png" for picture in files.pictures]


def _drawn(target: Path, task: str, files: SequenceFiles, picked: Sequence[int]) -> Any:
    """Frames uint8 [n,3,H,W] with what was predicted, and the truth in white."""
    import torch

    from fewtokens.data.masks import read_masks
    from fewtokens.evaluate.dense import read_frames
    from fewtokens.evaluate.pck import read_joints
    from fewtokens.show.objects import overlay_joints, overlay_objects

    frames, _ = read_frames([files.pictures[n] for n in picked], None)
    labels = _labelled(target, task, files)
    if task == "jhmdb":
        index = list(picked)
        return overlay_joints(frames, torch.tensor(labels)[index], read_joints(files.labels[0])[index])
    truth = read_masks([files.labels[n] for n in picked], values=task == "vip")
    return overlay_objects(frames, read_masks([labels[n] for n in picked]), truth)
