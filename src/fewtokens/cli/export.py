"""`fewtokens export`: copies tokens to a format that other libraries read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fewtokens.cli.command import verb
from fewtokens.cli.console import log
from fewtokens.cli.errors import check_exists
from fewtokens.cli.options import OUTPUT, Check, JsonOption
from fewtokens.cli.progress import progress
from fewtokens.cli.tables import print_json
from fewtokens.core.checks import check_format


@verb(
    "fewtokens export tokens/ tokens_wds/ --format webdataset",
    "fewtokens export tokens_wds/ tokens_hf/ --format hf --per-shard 1000",
    "fewtokens export clip.safetensors clip/ --format parquet",
)
def export(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="Token file, shard, or folder of these, in any of the formats.", show_default=False
        ),
    ],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="New output folder, or a URI such as s3://bucket/tokens.")
    ],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            help="safetensors (a file per video), shards (of safetensors), webdataset, parquet or hf (Hugging Face "
            "datasets).",
            rich_help_panel=OUTPUT,
        ),
        Check(check_format),
    ],
    per_shard: Annotated[
        int, typer.Option("--per-shard", min=1, help="Videos per shard.", rich_help_panel=OUTPUT)
    ] = 100,
    as_json: JsonOption = False,
) -> None:
    """Copy tokens of `fewtokens tokenize` from one format to another; values and headers stay equal.

    safetensors and shards are read by safetensors, webdataset by WebDataset, parquet by pyarrow and pandas, and hf by
    datasets.load_dataset(TARGET).
    """
    check_exists(source)
    from fewtokens.jobs import export as copy

    with progress("videos", None) as advance:
        count = copy(source, target, format, per_shard=per_shard, progress=advance)
    if as_json:
        print_json({"out": target, "format": format, "videos": count})
    else:
        log.print(f"{escape(target)}: {count} videos ({format})", highlight=False, soft_wrap=True)
