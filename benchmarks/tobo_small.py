"""Token Bottleneck and its relatives pre-trained here, at equal compute, on real clips and generated video.

    python benchmarks/tobo_small.py frames train --work WORK
    python benchmarks/tobo_small.py train --work WORK --only "tobo; mae" --seeds 0,1,2 --threads 1

frames  decodes the clips of ../shared/data/clips ($FEWTOKENS_DATA) to 144 px, and makes 1,000 clips of parts of their
        frames: blobs in changed colours move over a picture that is panned. All as bytes that are mapped into memory
        (4 GB); 5 minutes. No DAVIS sequence is among them.
train   the runs of `RUNS` one after the other, each into WORK/runs/NAME-SEED with its page (index.html)
        and its encoder (model/); a run that was stopped goes on, one that is done is left. ViT of width 128,
        4 blocks, 64 px, patches of 8, batch 32, bf16. One core with avx512_bf16 takes 21 minutes for `tobo`, 16 for
        `mae` and `siam_mae`, 18 for `crop_mae`, 40 for `rsp`, 5 for each ablation; two runs side by side with
        --threads 1 take half as long again each, which is faster than one on two cores.
cost    seconds of a step of each objective, into WORK/cost.json for the table; 4 minutes with nothing beside it.

Why so many made clips: on ten real clips and 60 of plain shapes, drawn from crops of half a frame, every objective
learned its clips by heart (loss on their pairs 0.63, on unseen videos 0.99, where 1 is to say nothing).

Expected (benchmarks/results/tobo_small.md): J&F by protocol A 59 for ToBo and MAE, 57 an earlier RSP, 55 SiamMAE, 43
CropMAE and random weights; with twice the steps 58 for ToBo and 56 for MAE.

Every run sees the same number of images, sources and targets together: MAE, which needs one for a sample where the
others need two, makes twice as many steps. Those of `LONG` see twice as many, the ablations a quarter. What differs
within the ablations is said in `ABLATIONS` and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewtokens.data.footage import Footage, find_footage
from fewtokens.data.packed import pack_frames, write_frames
from fewtokens.data.transforms import resize
from fewtokens.networks.pretrained import PRETRAINING
from fewtokens.train.loop import Report
from fewtokens.train.pretraining import pretrain
from fewtokens.train.pretraining_presets import OBJECTIVES, PretrainingRecipe, make_pretraining

DATA = Path(os.environ.get("FEWTOKENS_DATA", Path(__file__).parents[2] / "shared" / "data"))
SIDE, MADE, LENGTH, STEPS = 144, 1000, 64, 8_000
TIMED = 50
# Real clips are listed so many times, that half of what is seen is real.
REAL_TIMES = 100
NETWORK = {"dim": 128, "depth": 4, "num_heads": 2, "patch_size": 8, "decoder_dim": 96, "decoder_depth": 2,
           "decoder_num_heads": 2}  # fmt: skip

# Ablations: name -> objective and what differs from its preset, in SHORT of the steps.
SHORT = 1 / 4
ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "short tobo": ("tobo", {}),
    "short mae": ("mae", {}),
    "short tobo, 2 tokens": ("tobo", {"bottleneck_tokens": 2}),
    "short tobo, 4 tokens": ("tobo", {"bottleneck_tokens": 4}),
    "short tobo, 8 tokens": ("tobo", {"bottleneck_tokens": 8}),
    "short tobo, same frame": ("tobo", {"min_gap": 0, "max_gap": 0}),
    "short tobo, gap 48": ("tobo", {"max_gap": 48}),
    "short tobo, mask 0.5": ("tobo", {"mask_ratio": 0.5}),
    "short tobo, mask 0.9": ("tobo", {"mask_ratio": 0.9}),
    "short tobo, mask 0.95": ("tobo", {"mask_ratio": 0.95}),
    "short tobo, no auxiliary": ("tobo", {"auxiliary_weight": 0.0}),
}
# The two best in twice the steps.
LONG: dict[str, tuple[str, dict[str, Any]]] = {"long tobo": ("tobo", {}), "long mae": ("mae", {})}
# Of 64 patches the presets show, where another frame is looked at, as many by number as the papers (of 196: ToBo 19,
# SiamMAE 9, CropMAE 2), MAE's and RSP's as many by share (a quarter).
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in OBJECTIVES}, "tobo, no auxiliary": ("tobo", {"auxiliary_weight": 0.0}), **LONG,
    **ABLATIONS,
}  # fmt: skip


def frames(work: Path) -> None:
    """The bytes that all runs are trained on."""
    clips = find_footage(DATA / "clips")
    packed = pack_frames(clips.items, work / "frames" / "real", short=SIDE)
    print(f"{len(packed.files)} real clips, {packed.frames} frames written now", flush=True)
    for line in packed.broken:
        print(f"left out: {line}", flush=True)
    films = [np.load(path, mmap_mode="r") for path in packed.files]
    for number in range(MADE):
        path = work / "frames" / "made" / f"{number:04d}.npy"
        if not path.exists():
            write_frames(path, [collage(films, number)])
    print(f"{MADE} made clips", flush=True)


def collage(films: Sequence[np.ndarray], number: int) -> Tensor:
    """A generated clip, uint8 [LENGTH,3,SIDE,SIDE]: blobs of real pictures move over a real picture that is panned.

    Each layer is a part of a frame of some film, its colours changed, under a smooth path of place, size and angle.
    """
    generator = torch.Generator().manual_seed(number)
    clip = torch.zeros(LENGTH, 3, SIDE, SIDE)
    for layer in range(int(torch.randint(3, 6, (), generator=generator))):
        picture = _still(films, generator)
        alpha = torch.ones(1, SIDE, SIDE) if layer == 0 else _blob(generator)
        scale = _smooth(generator, 0.5, 0.9) if layer == 0 else _smooth(generator, 1.5, 5.0)
        angle = _smooth(generator, -0.4, 0.4)
        # In units of half the picture; a background never shows its edge by much, and reflects there.
        reach = 0.3 if layer == 0 else 1.0
        x, y = (scale * _smooth(generator, -reach, reach) for _ in range(2))
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).reshape(-1, 2, 2)
        map_ = torch.cat([scale[:, None, None] * turn, torch.stack([x, y], 1)[:, :, None]], 2)
        grid = F.affine_grid(map_, [LENGTH, 3, SIDE, SIDE], align_corners=False)
        seen = F.grid_sample(picture.expand(LENGTH, -1, -1, -1), grid, padding_mode="reflection", align_corners=False)
        cover = F.grid_sample(
            alpha.expand(LENGTH, -1, -1, -1), grid, padding_mode="border" if layer == 0 else "zeros",
            align_corners=False,
        )  # fmt: skip
        clip = clip + cover * (seen - clip)
    return (255 * clip).round().clamp(0, 255).byte()


def _still(films: Sequence[np.ndarray], generator: torch.Generator) -> Tensor:
    """A square part of a frame, [3,SIDE,SIDE] in 0..1, with other colours."""
    film = films[int(torch.randint(len(films), (), generator=generator))]
    frame = torch.from_numpy(film[int(torch.randint(len(film), (), generator=generator))].copy()).permute(2, 0, 1)
    side = int(min(frame.shape[1:]) * (0.3 + 0.7 * torch.rand((), generator=generator)))
    top, left = (int(torch.randint(room - side + 1, (), generator=generator)) for room in frame.shape[1:])
    part = resize(frame[None, :, top : top + side, left : left + side].float(), (SIDE, SIDE))[0].clamp(0, 255) / 255
    gain = 0.6 + 0.8 * torch.rand(3, 1, 1, generator=generator)
    power = 0.6 + 0.8 * torch.rand((), generator=generator)
    return (part[torch.randperm(3, generator=generator)] ** power * gain).clamp(0, 1)


def _blob(generator: torch.Generator) -> Tensor:
    """A soft-edged region of some shape, [1,SIDE,SIDE] in 0..1."""
    turn = torch.linspace(-1, 1, SIDE)
    y, x = torch.meshgrid(turn, turn, indexing="ij")
    angle, waves = torch.atan2(y, x), torch.arange(1, 6)[:, None, None]
    phase, height = 2 * torch.pi * torch.rand(5, 1, 1, generator=generator), torch.rand(5, 1, 1, generator=generator)
    radius = 0.65 + (0.16 * height * (waves * angle + phase).cos()).sum(0)
    return ((radius - (x**2 + y**2).sqrt()) * SIDE / 4).sigmoid()[None]


def _smooth(generator: torch.Generator, low: float, high: float) -> Tensor:
    """A number that wanders between two bounds, [LENGTH]: three slow waves."""
    time_ = torch.linspace(0, 1, LENGTH)
    turns, phase, height = (torch.rand(3, 1, generator=generator) for _ in range(3))
    wave = (height * (2 * torch.pi * (1.5 * turns * time_ + phase)).sin()).sum(0) / height.sum()
    return low + (high - low) * (0.5 + 0.5 * wave)


def footage(work: Path) -> list[Footage]:
    real, made_ = (find_footage(work / "frames" / part).items for part in ("real", "made"))
    return [*(real * REAL_TIMES), *made_]


def recipe_of(name: str, seed: int, steps: int, items: int, workers: int) -> PretrainingRecipe:
    """The recipe of a run: equally many images for all."""
    objective, changes = RUNS[name]
    steps = round(steps * (SHORT if name in ABLATIONS else 2 if name in LONG else 1))
    every = {
        "steps": steps * 2 // PRETRAINING[objective].frames, "seed": seed, "precision": "bf16", "batch": 32, "lr": 1e-3,
        "warmup": 0.05, "visits": max(1, 6400 // items),
        "workers": workers, "eval_every": 5.0, "save_every": 200, "log_every": 50, "shown": 8,
        **NETWORK,
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


def chosen(text: str | None, names: Sequence[str]) -> list[str]:
    """The names of a list separated by ';', all where there is none."""
    only = [name.strip() for name in text.split(";")] if text else list(names)
    if unknown := [name for name in only if name not in names]:
        sys.exit(f"nothing called {', '.join(unknown)}; there are {'; '.join(names)}")
    return only


def train(work: Path, only: list[str], seeds: list[int], steps: int, workers: int, device: str | None) -> None:
    items = footage(work)
    for name, seed in runs(only, seeds):
        out, recipe = folder_of(work, name, seed), recipe_of(name, seed, steps, len(items), workers)
        began = time.strftime("%H:%M")
        report = pretrain_on(device, items, recipe, out)
        each = report.seconds / max(1, report.steps - report.resumed_at)
        scores = "  ".join(f"{key} {value:.3f}" for key, value in report.scores.items())
        waiting = 100 * report.waiting / max(report.seconds, 1e-9)
        print(
            f"{began} {name:20s} seed {seed}  {report.steps} steps, {each:.2f} s each, {waiting:.0f} % waiting  "
            f"{scores}",
            flush=True,
        )


def pretrain_on(device: str | None, items: list[Footage], recipe: PretrainingRecipe, out: Path) -> Report:
    if device == "cpu" or not torch.cuda.is_available():
        # For sequences as short as these the plain kernel is a quarter faster on a CPU.
        with sdpa_kernel(SDPBackend.MATH):
            return pretrain(items, recipe, out, device="cpu")
    return pretrain(items, recipe, out)


def cost(work: Path, only: list[str], workers: int, device: str | None) -> None:
    """Seconds of a step of each objective, into WORK/cost.json; with nothing beside it, and best on one core."""
    items, path = footage(work), work / "cost.json"
    seconds = json.loads(path.read_text()) if path.exists() else {}
    for name in [name for name in only if name not in (*ABLATIONS, *LONG)]:
        took, steps = [], []
        # What the shorter run takes to begin and to end goes off the longer one.
        for length in (TIMED, 3 * TIMED):
            recipe = recipe_of(name, 0, length, len(items), workers)
            with TemporaryDirectory() as folder:
                report = pretrain_on(device, items, recipe, Path(folder) / "run")
            took.append(report.seconds)
            steps.append(report.steps)
        seconds[name] = (took[1] - took[0]) / (steps[1] - steps[0])
        print(f"{name:20s} {seconds[name]:.3f} s a step on {torch.get_num_threads()} threads", flush=True)
    path.write_text(json.dumps(seconds, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=("frames", "train", "cost"))
    parser.add_argument("--work", type=Path, required=True, help="folder for frames and runs")
    parser.add_argument("--only", help=f"runs, separated by ';': {'; '.join(RUNS)}")
    parser.add_argument("--seeds", default="0", help="such as 0,1,2")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the runs on pairs; MAE makes twice as many")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="of torch; all cores if 0")
    parser.add_argument("--device", choices=("cpu",), help="to stay there although there is a GPU")
    asked = parser.parse_args()
    only = chosen(asked.only, list(RUNS))
    if asked.threads:
        torch.set_num_threads(asked.threads)
    if "frames" in asked.parts:
        frames(asked.work)
    if "train" in asked.parts:
        seeds = [int(seed) for seed in asked.seeds.split(",")]
        train(asked.work, only, seeds, asked.steps, asked.workers, asked.device)
    if "cost" in asked.parts:
        cost(asked.work, only, asked.workers, asked.device)


if __name__ == "__main__":
    main()
