"""`fewtokens eval davis`, `jhmdb` and `vip`: a frozen encoder judged by label propagation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewtokens.cli.common import (
    BatchOption,
    DeviceOption,
    DtypeOption,
    EncoderOption,
    JsonOption,
    KeepOption,
    SeedOption,
    verb,
)
from fewtokens.cli.dense_run import Task, run

if TYPE_CHECKING:
    from fewtokens.data.dense_sets import SequenceFiles
    from fewtokens.evaluation.dense import Judged

app = typer.Typer(add_completion=False)

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
    from fewtokens.evaluation import dense

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
        return lines, tables, notes

    task = Task("davis", found, said, judge, summarise, "J&F-Mean", {"sizes": list(sizes)})
    run(
        task, data, only, encoder, protocol, changes, spec, keep, target, video, batch, device, dtype, seed, as_json
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
    """
    from fewtokens.data.dense_sets import jhmdb_clips
    from fewtokens.evaluation import dense

    found, said = jhmdb_clips(data, listing)

    def judge(files: SequenceFiles, encode: Any, how: Any, report: Any) -> Judged:
        return dense.jhmdb(files, encode, how, progress=report)

    task = Task("jhmdb", found, said, judge, lambda rows: (*dense.jhmdb_summary(rows), []), "PCK@0.1", {})
    run(
        task, data, only, encoder, protocol, changes, spec, keep, target, video, batch, device, dtype, seed, as_json
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
    from fewtokens.evaluation import dense

    found, said = vip_videos(data, listing)

    def judge(files: SequenceFiles, encode: Any, how: Any, report: Any) -> Judged:
        return dense.vip(files, encode, how, progress=report)

    task = Task("vip", found, said, judge, lambda rows: (*dense.vip_summary(rows), []), "mIoU", {})
    run(
        task, data, only, encoder, protocol, changes, spec, keep, target, video, batch, device, dtype, seed, as_json
    )  # fmt: skip
