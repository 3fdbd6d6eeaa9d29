"""Draws docs/images/hero.png: four methods on one clip at the same budget.

python docs/figures/hero.py 02_cups.mp4    # the figure of the README
python docs/figures/hero.py                # the same figure of a synthetic clip, to docs/images/hero_synthetic.png

The clip is demo/data/gallery/02_cups.mp4 of https://github.com/facebookresearch/sam2 at commit 2b90b9f (Apache-2.0).
"""

from __future__ import annotations

import sys
from pathlib import Path

import fewtokens
from fewtokens.core import registry
from fewtokens.encoders import Patches
from fewtokens.evaluation.compare import compare
from fewtokens.show import Clip, Result, draw_comparison

IMAGES = Path(__file__).parents[1] / "images"
KEEP, PATCH, FRAMES, SIZE, SECONDS = 0.1, 32, 16, (288, 512), 4.0
METHODS = ("uniform", "evs", "tome", "kmeans")
SOURCE = "Clip: 02_cups of the SAM 2 demo gallery (Meta, Apache-2.0)"


def draw_hero(path: Path, video: fewtokens.Video, source: str) -> Path:
    """Draws the figure.

    Args:
        path: of the PNG.
        video: frames [T,3,H,W].
        source: the clip and its license, for the caption.
    """
    encoder = Patches(PATCH)
    tokens, cues = encoder(video.frames[None], video.times, needs=("pixels",))
    methods = [registry.create_method(name, keep=KEEP) for name in METHODS]
    results = []
    for row in compare(tokens, methods, cues=cues, decode=encoder.decode, repeats=1):
        assert row.frames is not None
        rebuilt = (row.frames * 255).round().byte()
        results.append(Result(row.method.name, row.method.spec, row.tokens, rebuilt, row.numbers()))
    clip = Clip("clip", video.frames, video.times, results)
    return draw_comparison(
        clip,
        path,
        title=f"{len(video.frames)} frames of video in a tenth of the tokens",
        caption=f"{source}, {clip.cells:,} cells of {PATCH} x {PATCH} pixels. Budget: {100 * KEEP:g} % of the cells. "
        "uniform is a baseline; evs prunes, tome merges, kmeans clusters. dB: PSNR of all rebuilt frames.",
    )


def main(arguments: list[str]) -> None:
    if arguments:
        video = fewtokens.read(arguments[0], frames=FRAMES, size=SIZE, end=SECONDS)
        print(draw_hero(IMAGES / "hero.png", video, SOURCE))
    else:
        video = fewtokens.synthetic("static", frames=FRAMES, size=SIZE)
        print(draw_hero(IMAGES / "hero_synthetic.png", video, "Synthetic clip"))


if __name__ == "__main__":
    main(sys.argv[1:])
