"""Draws docs/images/hero.png: five methods on one synthetic clip at the same budget.

python docs/figures/hero.py
"""

from __future__ import annotations

from pathlib import Path

import fewtokens
from fewtokens.core import registry
from fewtokens.encoders import Patches
from fewtokens.evaluation.compare import compare
from fewtokens.show import Clip, Result, draw_comparison

OUT = Path(__file__).parents[1] / "images" / "hero.png"
KEEP, PATCH, FRAMES, SIZE = 0.1, 32, 16, (384, 512)
METHODS = ("uniform", "downsample", "evs", "tome", "kmeans")


def draw_hero(path: Path = OUT) -> Path:
    video = fewtokens.synthetic("static", frames=FRAMES, size=SIZE)
    encoder = Patches(PATCH)
    tokens, cues = encoder(video.frames[None], video.times, needs=("pixels",))
    methods = [registry.create_method(name, keep=KEEP) for name in METHODS]
    results = []
    for row in compare(tokens, methods, cues=cues, decode=encoder.decode, repeats=1):
        assert row.frames is not None
        rebuilt = (row.frames * 255).round().byte()
        results.append(Result(row.method.name, row.method.spec, row.tokens, rebuilt, row.numbers()))
    clip = Clip("static camera", video.frames, video.times, results)
    return draw_comparison(
        clip,
        path,
        title="Two seconds of video in a tenth of the tokens",
        caption=f"Synthetic clip, {clip.describe()} of {PATCH} x {PATCH} pixels. Budget: {100 * KEEP:g} % of the cells. "
        "Under each method: tokens, retention, PSNR.",
    )


if __name__ == "__main__":
    print(draw_hero())
