"""Laws of trained tokenizers: presets fit two clips, and more tokens, scales or depths give a higher PSNR.

    python benchmarks/tokenizer_laws.py                      # all rows
    python benchmarks/tokenizer_laws.py --only fqgan cat     # these presets; other rows stay as they were

Each preset of videos or images is trained at its tiny size, with the losses of its recipe and AdamW (10 steps of
warm-up to 2e-3, or to 5e-4 for five that do not settle at 2e-3), until the PSNR of both clips is 6 dB above that of
their mean frame, but at most 1,500 steps. That line is the mean over the frames of both clips: what a decoder that does
not read its tokens can give at best.

Those that decode parts of their tokens are trained again, 400 steps on 4 clips, or 2,000 steps on 64 (8 of them per
step) if tokens are dropped in training; then they are decoded from the first token, two, and so on; or the coarsest
scale, two, and so on; or with fewer and fewer pixels per token.

Presets of other signals (vat, wavtokenizer, i2_world) have tests of the same kind in tests/tokenizers/presets.

Cost: about 45 minutes of one core. Expect: 6 dB for every preset of the first table but divot, whose decoder samples
frames from features of a random network, and a PSNR that falls by at most 0.01 dB along a row of the second.
Where tokens are dropped in training, the first one or two say which of the clips it is, and the others add little.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.tokenizers.fitting import PARTS, clips, mean_frame_psnr, psnr, train

from common import RESULTS, write
from fewtokens.tokenizers import get_preset, list_tokenizers

GATE, MAX_STEPS = 6.0, 1500
# Steps and clips of the second table. With few clips the first token says which one it is, and the others add nothing.
STEPS, CLIPS = 400, 4
DROPPING, MORE_STEPS, MORE_CLIPS = ("one_d_piece", "flextok", "semanticist"), 2000, 64


def fit_row(name: str) -> dict[str, Any]:
    frames = clips(name, 2)
    line = mean_frame_psnr(frames)
    start, reached, steps = time.process_time(), -math.inf, 0
    for step, tokenizer in train(name, frames, MAX_STEPS):
        reached, steps = psnr(frames, tokenizer.decode(tokenizer.encode(frames))), step
        if reached >= line + GATE:
            break
    return {
        "tokenizer": name,
        "mean frame, dB": line,
        "PSNR, dB": reached,
        "above, dB": reached - line,
        "steps": steps,
        "CPU s": time.process_time() - start,
    }


def part_row(name: str) -> dict[str, Any]:
    number, limit = (MORE_CLIPS, MORE_STEPS) if name in DROPPING else (CLIPS, STEPS)
    frames, (unit, parts) = clips(name, number), PARTS[name]
    start = time.process_time()
    (*_, (steps, tokenizer)) = train(name, frames, limit, decay=True)
    scores = {count: psnr(frames, tokenizer.decode(tokens)) for count, tokens in parts(tokenizer, frames)}
    values = list(scores.values())
    return {
        "tokenizer": name,
        "part": unit,
        "number": ", ".join(map(str, scores)),
        "PSNR, dB": ", ".join(f"{value:.2f}" for value in values),
        "smallest rise, dB": min(more - fewer for fewer, more in itertools.pairwise(values)),
        "clips": number,
        "steps": steps,
        "CPU s": time.process_time() - start,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for name in list_tokenizers() if get_preset(name).source == "video"]
    parser.add_argument(
        "--only", choices=names, nargs="+", default=names, metavar="NAME", help="presets (default: all)"
    )
    args = parser.parse_args()
    tables = {"Two clips": (names, fit_row), "Parts of the tokens": (list(PARTS), part_row)}
    path = RESULTS / "tokenizer_laws.json"
    rows: dict[str, list[dict[str, Any]]] = json.loads(path.read_text())["rows"] if path.exists() else {}
    for title, (order, measure) in tables.items():
        for name in [name for name in order if name in args.only]:
            others = [row for row in rows.get(title, []) if row["tokenizer"] != name]
            rows[title] = sorted([*others, measure(name)], key=lambda row: order.index(row["tokenizer"]))
            write("tokenizer_laws", "Laws of trained tokenizers", COMMAND, rows, NOTES, digits=4)


COMMAND = "python benchmarks/tokenizer_laws.py"
NOTES = (
    "Two clips: steps until the PSNR of both clips is 6 dB above that of their mean frame, in multiples of 50, at most "
    "1,500. Parts: PSNR of clips that were trained on, decoded from the first number of tokens, the coarsest scales "
    "or depths, or with fewer pixels per token. The core was shared with other jobs, so CPU seconds are too high."
)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main()
