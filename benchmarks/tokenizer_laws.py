"""Laws of trained tokenizers: presets fit two clips, and more tokens, scales or depths give a higher PSNR.

    python benchmarks/tokenizer_laws.py                      # all rows
    python benchmarks/tokenizer_laws.py --only fqgan cat     # these presets; other rows stay as they were

Each preset of videos or images is trained at its tiny size, with the losses of its recipe and AdamW (10 steps of
warm-up to 2e-3, or to 5e-4 for five that do not settle at 2e-3), until the PSNR of both clips is 6 dB above that of
their mean frame, but at most 1,500 steps, or 4,000 for divot. That line is the mean over the frames of both clips: what
a decoder that does not read its tokens can give at best.

Those that decode parts of their tokens are trained again, 400 steps on 4 clips, or 2,000 steps on 64 (8 of them per
step) if tokens are dropped in training; then they are decoded from the first token, two, and so on; or the coarsest
scale, two, and so on; or with fewer and fewer pixels per token.

Moto is trained 3,000 steps on pairs of a smooth texture and the same moved on a torus, by -8, 0, 8 or 16 of 32 pixels,
new textures at each step. Then the codes of one pair are decoded with the first frame of another, whose own motion is
none, and the decoded frame is compared with that first frame moved by each of the four: transfer is the share of pairs
for which the motion of the encoded pair is the nearest.

Presets of other signals (vat, wavtokenizer, i2_world) have tests of the same kind in tests/tokenizers/presets.

Cost: about 50 minutes of one core. Expect: 6 dB for every preset of the first table, divot last, whose decoder samples
frames from features of a random network, and a PSNR that falls by at most 0.01 dB along a row of the second. Where
tokens are dropped in training, the first one or two say which of the clips it is, and the others add little. Transfer
is that of a guess, 0.25, for some 2,000 steps, and then soon 1.
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
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.tokenizers.fitting import PARTS, clips, mean_frame_psnr, psnr, train

from common import RESULTS, write
from fewtokens.tokenizers import create_tokenizer, get_preset, list_tokenizers
from fewtokens.tokenizers.presets.moto import Moto

GATE, MAX_STEPS = 6.0, {"divot": 4000}
# Steps and clips of the second table. With few clips the first token says which one it is, and the others add nothing.
STEPS, CLIPS = 400, 4
DROPPING, MORE_STEPS, MORE_CLIPS = ("one_d_piece", "flextok", "semanticist"), 2000, 64


def fit_row(name: str) -> dict[str, Any]:
    frames = clips(name, 2)
    line = mean_frame_psnr(frames)
    start, reached, steps = time.process_time(), -math.inf, 0
    for step, tokenizer in train(name, frames, MAX_STEPS.get(name, 1500)):
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


def transfer_row(name: str, steps: int = 3000, batch: int = 32) -> dict[str, Any]:
    torch.manual_seed(0)
    tokenizer = create_tokenizer(name, tiny=True)
    assert isinstance(tokenizer, Moto)
    optimizer = torch.optim.Adam([p for p in tokenizer.parameters() if p.requires_grad])
    start = time.process_time()
    for step in range(1, steps + 1):
        clips, _ = moving_pairs(batch, step)
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, 2 * (1 - step / steps))
        result = tokenizer.train()(clips)
        assert result.frames is not None
        loss = (result.frames - (2 * clips - 1)).square().mean() + torch.stack(list(result.losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokens_of = tokenizer.eval().encode
    (clips, shifts), (others, _) = moving_pairs(128, steps + 1), moving_pairs(128, steps + 2)
    tokens, still = tokens_of(clips), tokens_of(others[:, :1].expand_as(others))
    assert still.codes is not None
    own, other = (tokenizer.decode(tokens, side=frames)[:, 1] for frames in (clips[:, 0], others[:, 0]))
    copied, error = ((frames - clips[:, 1]).square().mean() for frames in (clips[:, 0], own))
    return {
        "tokenizer": name,
        "right motion, own first frame": nearest_shift(own, clips[:, 0]).eq(shifts).float().mean().item(),
        "transfer": nearest_shift(other, others[:, 0]).eq(shifts).float().mean().item(),
        "above a copy of the first frame, dB": 10 * torch.log10(copied / error).item(),
        "codes of 128 pairs without motion": len(still.codes[..., 0].unique(dim=0)),
        "pairs": len(clips),
        "steps": steps,
        "CPU s": time.process_time() - start,
    }


SHIFTS = torch.tensor([-8, 0, 8, 16])


def moving_pairs(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs [count,2,3,32,32] in 0..1, the second frame being the first one moved to the right, and how far."""
    generator = torch.Generator().manual_seed(seed)
    shifts = SHIFTS[torch.randint(len(SHIFTS), (count,), generator=generator)]
    first = F.interpolate(torch.rand(count, 3, 4, 4, generator=generator), 32, mode="bicubic").clamp(0, 1)
    return torch.stack([first, move(first, shifts)], 1), shifts


def move(frames: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Frames [B,3,H,W] moved to the right by shifts [B], in pixels; what leaves comes in at the left."""
    columns = (torch.arange(frames.shape[-1]) - shifts[:, None]) % frames.shape[-1]
    return frames.gather(3, columns[:, None, None].expand_as(frames))


def nearest_shift(decoded: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """Of the four, [B]."""
    moved = torch.stack([move(first, shift.expand(len(first))) for shift in SHIFTS], 1)
    return SHIFTS[(moved - decoded[:, None]).square().mean((2, 3, 4)).argmin(1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for name in list_tokenizers() if get_preset(name).source == "video"]
    parser.add_argument(
        "--only", choices=names, nargs="+", default=names, metavar="NAME", help="presets (default: all)"
    )
    args = parser.parse_args()
    tables = {
        "Two clips": (names, fit_row),
        "Parts of the tokens": (list(PARTS), part_row),
        "Motion of one pair, first frame of another": (["moto"], transfer_row),
    }
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
    "1,500, or 4,000 for divot. Parts: PSNR of clips that were trained on, decoded from the first number of tokens, "
    "the coarsest scales or depths, or with fewer pixels per token. Motion: codes decoded with the first frame of "
    "another pair, one without motion; a guess has a transfer of 0.25. The core was shared with other jobs, so "
    "CPU seconds are too high."
)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main()
