"""`fewtokens words`: fits the vocabulary of the method visual_words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fewtokens.cli.command import verb
from fewtokens.cli.console import log
from fewtokens.cli.errors import check_exists
from fewtokens.cli.options import METHOD, OUTPUT, ReadOptions, SeedOption, VideosArgument
from fewtokens.cli.pipelines import check_reading, read_video
from fewtokens.cli.progress import progress


@verb(
    "fewtokens words videos/*.mp4 --words 1000 --out words.safetensors",
    "fewtokens words images/ --patch 14 --frames 64 --out words.safetensors",
)
def words(
    videos: VideosArgument,
    target: Annotated[Path, typer.Option("--out", help="Output .safetensors file.", rich_help_panel=OUTPUT)],
    reading: ReadOptions,
    number: Annotated[
        int, typer.Option("--words", min=1, help="Number of words in the vocabulary.", rich_help_panel=METHOD)
    ] = 1000,
    patch: Annotated[
        int,
        typer.Option(
            "--patch", min=1, help="Side of a patch in pixels, equal to that of the encoder.", rich_help_panel=METHOD
        ),
    ] = 16,
    seed: SeedOption = 0,
) -> None:
    """Fit the vocabulary of the method visual_words on the patches of videos."""
    check_exists(*videos)
    check_reading(reading)
    if target.suffix != ".safetensors":
        raise ValueError(f"--out must end in .safetensors, got {target}")
    import torch

    from fewtokens.core.ahead import map_ahead, reading_threads
    from fewtokens.encoders.frames import fit, patchify, to_unit
    from fewtokens.encoders.patches import Patches
    from fewtokens.methods.merging.visual_words import fit_words, save_words

    def batches() -> Iterator[torch.Tensor]:
        with (
            progress("videos", len(videos)) as advance,
            map_ahead(lambda video, check: read_video(video, reading, check), videos, reading_threads()) as clips,
        ):
            for done, clip in enumerate(clips):
                for part in clip.frames.split(16):
                    grid = Patches(patch).grid(len(part), *part.shape[2:])
                    yield patchify(fit(to_unit(part)[None], grid, 1, patch), 1, patch)[0]
                advance(done + 1)

    vocabulary = fit_words(batches(), number, seed)
    save_words(vocabulary, target, patch=patch, videos=[str(video) for video in videos], seed=seed)
    log.print(f"{escape(str(target))}: {len(vocabulary)} words of {patch}x{patch} pixels", highlight=False)
