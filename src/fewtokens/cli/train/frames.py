"""`fewtokens train frames`: decodes videos before pre-training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fewtokens.cli.command import verb
from fewtokens.cli.console import log, out
from fewtokens.cli.errors import check_exists
from fewtokens.cli.options import INPUT, OUTPUT, JsonOption, RootOption
from fewtokens.cli.progress import progress
from fewtokens.cli.tables import print_json
from fewtokens.cli.train.runs import FootageArgument, print_some


@verb(
    "fewtokens train frames videos/ --out frames/ --size 128",
    "fewtokens train frames k400/train.txt --root k400/train --out frames/ --size 256",
)
def frames(
    data: FootageArgument,
    folder: Annotated[
        Path,
        typer.Option(
            "--out",
            help="Output folder, one .npy file per video. Existing files are skipped.",
            rich_help_panel=OUTPUT,
        ),
    ],
    size: Annotated[
        int, typer.Option("--size", help="Short side of the frames, in pixels; 0: unchanged.", rich_help_panel=INPUT)
    ] = 128,
    root: RootOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Overwrite existing files.", rich_help_panel=OUTPUT)] = False,
    as_json: JsonOption = False,
) -> None:
    """Decode videos to .npy files, so that pre-training does not wait for decoding."""
    check_exists(data)
    from fewtokens.data.footage import find_footage
    from fewtokens.data.packed import pack_frames

    if size < 0:
        raise ValueError(f"--size must be at least 0, got {size}")
    footage = find_footage(data, root=root)
    with progress("decoding", len(footage.items)) as advance:
        packed = pack_frames(footage.items, folder, short=size, fresh=fresh, progress=advance)
    if as_json:
        print_json({"out": str(folder), "videos": len(packed.files), "frames": packed.frames,
                    "broken": list(packed.broken), "missing": list(footage.missing)})  # fmt: skip
        return
    out.print(f"{len(packed.files)} videos in {escape(str(folder))}, {packed.frames} frames written in this run")
    if packed.unverified:
        log.print(f"{packed.unverified} files of an earlier version, which did not save their sources, were kept")
    print_some("could not be read", packed.broken)
    print_some("missing", footage.missing)
