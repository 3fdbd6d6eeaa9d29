"""`fewtokens words`: fits the vocabulary of the method visual_words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fewtokens.cli.common import FpsOption, FramesOption, SeedOption, SizeOption, log, progress, read_video, verb

app = typer.Typer(add_completion=False)


@app.command(
    epilog="Examples:  [bold]fewtokens words videos/*.mp4 --words 1000 --out words.safetensors[/bold]   |   "
    "[bold]fewtokens words images/ --patch 14 --frames 64 --out words.safetensors[/bold]"
)
@verb
def words(
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO...", help="Videos, images or folders of images.")],
    target: Annotated[Path, typer.Option("--out", help="A .safetensors file.")],
    number: Annotated[int, typer.Option("--words", min=1, help="Words of the vocabulary.")] = 1000,
    patch: Annotated[int, typer.Option("--patch", min=1, help="Side of a patch in pixels, as the encoder has.")] = 16,
    frames: FramesOption = None,
    fps: FpsOption = None,
    size: SizeOption = 224,
    seed: SeedOption = 0,
) -> None:
    """Fit visual words on the patches of videos, for the method visual_words."""
    import torch

    from fewtokens.encoders.frames import fit, patchify, to_unit
    from fewtokens.encoders.patches import Patches
    from fewtokens.methods.merging.visual_words import fit_words, save_words

    if target.suffix != ".safetensors":
        raise ValueError(f"--out {target} must end in .safetensors")

    def batches() -> Iterator[torch.Tensor]:
        with progress("videos", len(videos)) as advance:
            for done, video in enumerate(videos):
                clip = read_video(video, frames=frames, fps=fps, size=size).frames
                for part in clip.split(16):
                    grid = Patches(patch).grid(len(part), *part.shape[2:])
                    yield patchify(fit(to_unit(part)[None], grid, 1, patch), 1, patch)[0]
                advance(done + 1)

    made = fit_words(batches(), number, seed)
    save_words(made, target, patch=patch, videos=[str(video) for video in videos], seed=seed)
    log.print(f"{escape(str(target))}: {len(made)} words of {patch}x{patch} pixels", highlight=False)
