"""`fewtokens train bpe`: learns which codes of a trained tokenizer to merge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from fewtokens.cli.command import verb
from fewtokens.cli.console import out
from fewtokens.cli.errors import check_exists, check_folder
from fewtokens.cli.options import (
    ENCODER,
    OUTPUT,
    TRAINING,
    Check,
    JsonOption,
    OverwriteOption,
    check_tokenizer,
    find_tokenizer,
)
from fewtokens.cli.progress import progress
from fewtokens.cli.resume import unique_paths
from fewtokens.cli.tables import print_json
from fewtokens.cli.tokenizer_files import StoredTokenizers

if TYPE_CHECKING:
    from fewtokens.core.tokens import Tokens


@verb(
    "fewtokens train bpe codes/*.safetensors --out merged",
    "fewtokens train bpe codes/*.safetensors --tokenizer run/tokenizer --merges 256 --out merged",
)
def bpe(
    encoded: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="Files of `fewtokens encode`, of one tokenizer.")
    ],
    folder: Annotated[Path, typer.Option("--out", help="Output folder of the new tokenizer.", rich_help_panel=OUTPUT)],
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            help="Folder or hub id of the tokenizer, if it has moved. Default: that in the header of the files.",
            rich_help_panel=ENCODER,
        ),
        Check(check_tokenizer, find_tokenizer),
    ] = None,
    merges: Annotated[
        int | None,
        typer.Option(
            "--merges", min=1, help="Largest number of new codes. Default, and at most: 1024.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Learn which neighboring codes to merge, by byte-pair encoding, so that encoded videos have fewer tokens.

    Writes a tokenizer with the same parts, for fewtokens encode and decode. Merging is lossless: decoded videos are the
    same. The tokenizer must have one code per cell.
    """
    files = unique_paths(encoded)
    check_exists(*files)
    check_folder(folder)
    if (folder / "config.json").exists() and not overwrite:
        raise ValueError(f"{folder} already contains a model; give --overwrite, or another --out")
    from fewtokens.tokenizers.files import read_encoded, read_header
    from fewtokens.tokenizers.presets.bpe import BpeTokenizer

    open_once = StoredTokenizers(tokenizer, "cpu")
    first, *others = [(file, read_header(file)) for file in files]
    for file, header in others:
        if header["tokenizer"]["fingerprint"] != first[1]["tokenizer"]["fingerprint"]:
            raise ValueError(f"{file}: encoded by another tokenizer than {first[0]}; give files of one tokenizer")
    model = BpeTokenizer.from_tokenizer(open_once(*first))
    cells = count = 0

    def read() -> Iterator[Tokens]:
        nonlocal cells, count
        for file in files:
            tokens = read_encoded(file)
            cells += tokens.B * tokens.grid.cells
            yield tokens

    total = merges or BpeTokenizer.merges
    with progress("merging codes", total) as advance:

        def step(done: int, tokens: int) -> None:
            nonlocal count
            count = tokens
            advance(done, total, f"{tokens} tokens")

        new = model.fit_codes(read(), merges=merges, progress=step)
    model.save_pretrained(folder)
    count = count or cells
    if as_json:
        print_json({"out": str(folder), "files": len(files), "new_codes": new, "cells": cells, "tokens": count})
        return
    out.print(f"{new} new codes: {count} tokens for {cells} cells ({100 * count / cells:.1f} %)", highlight=False)
    out.print(f"[bold]Tokenizer[/bold]  {escape(str(folder))}", highlight=False)
