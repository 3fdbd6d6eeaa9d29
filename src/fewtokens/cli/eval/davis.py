"""`fewtokens eval davis`: scores propagation of object masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewtokens.cli.command import verb
from fewtokens.cli.eval.dense_run import MODES, DataOption, DenseOptions, Task, run_task
from fewtokens.cli.options import INPUT, PROTOCOL
from fewtokens.core.checks import check_layout

if TYPE_CHECKING:
    from fewtokens.data.dense_sets import SequenceFiles
    from fewtokens.evaluation.dense import SequenceResult


@verb(
    "fewtokens eval davis --data DAVIS/ --encoder run/model --protocol A --out scores/",
    'fewtokens eval davis --data DAVIS/ --encoder facebook/dinov2-small --with "tome(keep=0.25)" --score-size both',
    modes=MODES,
)
def davis(
    data: DataOption,
    options: DenseOptions = DenseOptions(batch=8),
    protocol: Annotated[
        str,
        typer.Option(
            "--protocol", help="Protocol A, B or B-rsp; --set overrides its settings.", rich_help_panel=PROTOCOL
        ),
    ] = "A",
    score_size: Annotated[
        str,
        typer.Option(
            "--score-size",
            help="Size at which masks are scored: native, 880 (all at 480x880) or both.",
            rich_help_panel=PROTOCOL,
        ),
    ] = "native",
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            help="Split under ImageSets (e.g. 2017/val), or all. Default: the first of 2017/val, 2016/val, all that "
            "exists.",
            rich_help_panel=INPUT,
        ),
    ] = None,
) -> None:
    """Score a frozen encoder on DAVIS 2016 or 2017: propagate the masks of the first frame, measure J and F.

    --out writes results.json, masks/ in the layout and palette of the official tool, and sheet.png (white: ground
    truth). F is higher at 480x880, where boundaries match within 9 px, than at 480x854, where they match within 8 px.
    """
    check_layout(data, "DAVIS")
    if score_size not in ("native", "880", "both"):
        raise ValueError(f"--score-size must be native, 880 or both, got {score_size!r}")
    from fewtokens.data.dense_sets import davis_sequences
    from fewtokens.evaluation import dense

    sizes = dense.SIZES if score_size == "both" else (score_size,)
    sequences, listing = davis_sequences(data, split)

    def evaluate(files: SequenceFiles, encode: Any, settings: Any, report: Any) -> SequenceResult:
        return dense.davis(files, encode, settings, sizes, progress=report)

    def summarize(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any], list[str]]:
        lines, tables = dense.davis_summary(rows)
        notes = []
        for at in sizes:
            scored = {(tuple(row["scores"][at]["size"]), row["scores"][at]["tolerance"]) for row in rows}
            tolerances = ", ".join(f"{px} px at {h}x{w}" for (h, w), px in sorted(scored))
            notes.append(f"{at}: boundaries match within {tolerances}")
        if "880" in sizes:
            notes.append("F at 480x880 is not comparable with F at the native size, which is stricter")
        return lines, tables, notes

    task = Task("davis", sequences, listing, evaluate, summarize, "j_and_f_mean", {"sizes": list(sizes)})
    run_task(task, data, protocol, options)
