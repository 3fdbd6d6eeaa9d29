"""Token Bottleneck and its relatives pre-trained here, at equal compute, on real clips and generated video.

    python benchmarks/tobo_small.py frames train --work WORK
    python benchmarks/tobo_small.py train --work WORK --only "tobo; mae" --seeds 0,1,2 --steps 20000 --threads 1

frames  decodes the clips of ../shared/data/clips ($FEWTOKENS_DATA) to 112 px and makes 60 clips (moving shapes, pans,
        static cameras with movers, scenes of coloured shapes over drifting texture), all as bytes that are mapped into
        memory; a minute. No DAVIS sequence is among them.
train   the runs of `RUNS` one after the other, each into WORK/runs/NAME-SEED with its page (index.html), its curves
        and its encoder (model/); a run that was stopped goes on, one that is done is left. ViT of width 192, 6 blocks,
        64 px, patches of 8, batch 64, bf16. About 0.45 s a step of `tobo` on 2 cores with avx512_bf16, 0.7 s of `rsp`,
        so 20,000 steps of `tobo` take 2.5 hours.

Every run sees the same number of images, sources and targets together: MAE, which needs one for a sample where the
others need two, makes twice as many steps. What differs within the ablations is said in `RUNS` and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewtokens.data.footage import Footage, find_footage
from fewtokens.data.packed import pack_frames, write_frames
from fewtokens.data.scenes import BACKGROUNDS, COLOURS, SHAPES, Actor, Background, render
from fewtokens.models.pretrained import PRETRAINING
from fewtokens.train.pretraining import pretrain
from fewtokens.train.pretraining_presets import PretrainingRecipe, make_pretraining
from fewtokens.video import synthetic

DATA = Path(os.environ.get("FEWTOKENS_DATA", Path(__file__).parents[2] / "shared" / "data"))
SIDE, MADE, LENGTH, STEPS = 112, 60, 96, 3_000
# Real clips are listed so many times, that half of what is seen is real.
REAL_TIMES = 6

# name -> objective and what differs from its preset.
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "tobo": ("tobo", {}),
    "siam_mae": ("siam_mae", {}),
    "crop_mae": ("crop_mae", {}),
    "rsp": ("rsp", {}),
    "mae": ("mae", {}),
    "tobo, 2 tokens": ("tobo", {"bottleneck_tokens": 2}),
    "tobo, 4 tokens": ("tobo", {"bottleneck_tokens": 4}),
    "tobo, 8 tokens": ("tobo", {"bottleneck_tokens": 8}),
    "tobo, same frame": ("tobo", {"min_gap": 0, "max_gap": 0}),
    "tobo, mask 0.5": ("tobo", {"mask_ratio": 0.5}),
    "tobo, mask 0.75": ("tobo", {"mask_ratio": 0.75}),
    "tobo, mask 0.95": ("tobo", {"mask_ratio": 0.95}),
    "tobo, no auxiliary": ("tobo", {"auxiliary_weight": 0.0}),
}


def frames(work: Path) -> None:
    """The bytes that all runs are trained on."""
    clips = find_footage(DATA / "clips")
    packed = pack_frames(clips.items, work / "frames" / "real", short=SIDE)
    print(f"{len(packed.files)} real clips, {packed.frames} frames written now", flush=True)
    for line in packed.broken:
        print(f"left out: {line}", flush=True)
    for number in range(MADE):
        path = work / "frames" / "made" / f"{number:03d}.npy"
        if not path.exists():
            write_frames(path, [made(number)])
    print(f"{MADE} made clips", flush=True)


def made(number: int) -> Tensor:
    """A generated clip, uint8 [T,3,SIDE,SIDE]."""
    kinds = ("shapes", "pan", "static")
    if number % 2:
        return synthetic(kinds[number // 2 % 3], frames=LENGTH, size=(SIDE, SIDE), seed=1000 + number).frames
    rng = np.random.default_rng(number)
    looks, colours = rng.permutation(SHAPES)[:4], rng.permutation(list(COLOURS))[:4]
    actors = [Actor(str(look), str(colour), *_walk(rng)) for look, colour in zip(looks, colours, strict=True)]
    drift = tuple(float(part) for part in rng.uniform(-0.6, 0.6, 2))
    background = Background(str(rng.choice(BACKGROUNDS[1:])), (drift[0], drift[1]), number)
    return render(actors, background, LENGTH, SIDE, "train")


def _walk(rng: np.random.Generator) -> tuple[float, Any, Any]:
    """Side, path and presence of an object that swings about a place."""
    side = float(rng.uniform(0.15, 0.35))
    time_ = np.linspace(0, 2 * np.pi, LENGTH)[:, None]
    turns, phase = rng.integers(1, 4, 2), rng.uniform(0, 2 * np.pi, 2)
    reach = (1 - side) / 2
    centre = rng.uniform(-0.3, 0.3, 2) * reach
    swing = rng.uniform(0.3, 1, 2) * (reach - abs(centre))
    return side, 0.5 + centre + swing * np.sin(turns * time_ + phase), np.ones(LENGTH, bool)


def footage(work: Path) -> list[Footage]:
    real, made_ = (find_footage(work / "frames" / part).items for part in ("real", "made"))
    return [*(real * REAL_TIMES), *made_]


def recipe_of(name: str, seed: int, steps: int, items: int, workers: int) -> PretrainingRecipe:
    """The recipe of a run: equally many images for all."""
    objective, changes = RUNS[name]
    every = {
        "steps": steps * 2 // PRETRAINING[objective].frames, "seed": seed, "precision": "bf16", "batch": 32, "lr": 6e-4,
        "warmup": 0.05, "size": 64, "max_gap": 48, "visits": max(1, 6400 // items), "workers": workers,
        "eval_every": 5.0, "save_every": 200, "log_every": 50, "shown": 8,
    }  # fmt: skip
    return make_pretraining(f"{objective}_tiny", **(every | changes))


def folder_of(work: Path, name: str, seed: int) -> Path:
    """Where a run lies; its encoder is in model/."""
    return work / "runs" / f"{name.replace(', ', '-').replace(' ', '_')}-{seed}"


def runs(only: list[str], seeds: list[int]) -> Iterator[tuple[str, int]]:
    """Seeds outside, so that one of everything is there first."""
    for seed in seeds:
        for name in only:
            yield name, seed


def train(work: Path, only: list[str], seeds: list[int], steps: int, workers: int, device: str | None) -> None:
    items = footage(work)
    for name, seed in runs(only, seeds):
        out, recipe = folder_of(work, name, seed), recipe_of(name, seed, steps, len(items), workers)
        began = time.strftime("%H:%M")
        if device == "cpu" or not torch.cuda.is_available():
            # For sequences as short as these the plain kernel is a quarter faster on a CPU.
            with sdpa_kernel(SDPBackend.MATH):
                report = pretrain(items, recipe, out, device="cpu")
        else:
            report = pretrain(items, recipe, out)
        _count_time(out, report.seconds, report.steps - report.resumed_at)
        each = report.seconds / max(1, report.steps - report.resumed_at)
        scores = "  ".join(f"{key} {value:.3f}" for key, value in report.scores.items())
        waiting = 100 * report.waiting / max(report.seconds, 1e-9)
        print(
            f"{began} {name:20s} seed {seed}  {report.steps} steps, {each:.2f} s each, {waiting:.0f} % waiting  "
            f"{scores}",
            flush=True,
        )


def _count_time(out: Path, seconds: float, steps: int) -> None:
    """Adds up the seconds of a run over the calls that it took."""
    path = out / "time.json"
    said = json.loads(path.read_text()) if path.exists() else {"seconds": 0.0, "steps": 0}
    if steps:
        path.write_text(json.dumps({"seconds": said["seconds"] + seconds, "steps": said["steps"] + steps}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=("frames", "train"))
    parser.add_argument("--work", type=Path, required=True, help="folder for frames and runs")
    parser.add_argument("--only", help=f"runs, separated by ';': {'; '.join(RUNS)}")
    parser.add_argument("--seeds", default="0", help="such as 0,1,2")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the runs on pairs; MAE makes twice as many")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="of torch; all cores if 0")
    parser.add_argument("--device", choices=("cpu",), help="to stay there although there is a GPU")
    asked = parser.parse_args()
    only = [name.strip() for name in asked.only.split(";")] if asked.only else list(RUNS)
    if unknown := [name for name in only if name not in RUNS]:
        sys.exit(f"no run called {', '.join(unknown)}; there are {'; '.join(RUNS)}")
    if asked.threads:
        torch.set_num_threads(asked.threads)
    if "frames" in asked.parts:
        frames(asked.work)
    if "train" in asked.parts:
        seeds = [int(seed) for seed in asked.seeds.split(",")]
        train(asked.work, only, seeds, asked.steps, asked.workers, asked.device)


if __name__ == "__main__":
    main()
