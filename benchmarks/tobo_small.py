"""Pre-training of Token Bottleneck and related objectives at equal compute, on real clips and generated video.

    python benchmarks/tobo_small.py frames train --work WORK
    python benchmarks/tobo_small.py train --work WORK --only "tobo; mae" --seeds 0,1,2 --threads 1

frames  decodes the clips of ../shared/data/clips ($FEWTOKENS_DATA) to 144 px and generates 1,000 clips from parts of
        their frames: blobs with changed colors move over an image that is panned. Memory-mapped uint8 arrays (4 GB);
        5 minutes. No DAVIS sequence is included.
train   trains `RUNS` in sequence, each in WORK/runs/NAME-SEED with its page (index.html) and encoder (model/);
        interrupted runs resume, finished ones are skipped. ViT with 128 channels and 4 blocks, 64 px, patches of 8,
        batch 32, bf16. One core with avx512_bf16 takes 21 minutes for `tobo`, 16 for `mae` and `siam_mae`, 18 for
        `crop_mae`, 40 for `rsp`, 5 for each ablation; two runs in parallel with --threads 1 take 1.5 times as long
        each, which is faster than one run on two cores.
cost    measures the time per step of each objective and writes WORK/cost.json; 4 minutes on an idle machine.

Why 1,000 generated clips: with ten real clips and 60 of simple shapes, sampled in crops of half a frame, every
objective memorized its clips (loss 0.63 on their pairs and 0.99 on unseen videos, where 1 is an uninformative
prediction).

Expected (benchmarks/results/tobo_small.md): J&F with protocol A 59 for ToBo and MAE, 57 for an earlier RSP, 55 for
SiamMAE, 43 for CropMAE and random weights; with twice the steps 58 for ToBo and 56 for MAE.

Every run uses the same number of images (sources and targets): MAE, which needs one image per sample instead of two,
has twice as many steps. The runs in `LONG` use twice as many images, the ablations a quarter. The ablations differ only
in the settings in `ABLATIONS`.
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
SIDE, GENERATED, LENGTH, STEPS = 144, 1000, 64, 8_000
TIMED = 50
# Real clips are repeated this many times, so that half of the samples are real.
REAL_REPEATS = 100
NETWORK = {"dim": 128, "depth": 4, "num_heads": 2, "patch_size": 8, "decoder_dim": 96, "decoder_depth": 2,
           "decoder_num_heads": 2}  # fmt: skip

# Ablations: name -> objective and changes to its preset; they use SHORT of the steps.
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
# The two best objectives with twice the steps.
LONG: dict[str, tuple[str, dict[str, Any]]] = {"long tobo": ("tobo", {}), "long mae": ("mae", {})}
# Of 64 patches, presets with two frames show the same number of patches as the papers (of 196: ToBo 19, SiamMAE 9,
# CropMAE 2); those of MAE and RSP show the same fraction (a quarter).
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in OBJECTIVES}, "tobo, no auxiliary": ("tobo", {"auxiliary_weight": 0.0}), **LONG,
    **ABLATIONS,
}  # fmt: skip


def frames(work: Path) -> None:
    """Writes the frames that all runs are trained on."""
    clips = find_footage(DATA / "clips")
    packed = pack_frames(clips.items, work / "frames" / "real", short=SIDE)
    print(f"{len(packed.files)} real clips, {packed.frames} frames written now", flush=True)
    for line in packed.broken:
        print(f"skipped: {line}", flush=True)
    videos = [np.load(path, mmap_mode="r") for path in packed.files]
    for index in range(GENERATED):
        path = work / "frames" / "made" / f"{index:04d}.npy"
        if not path.exists():
            write_frames(path, [collage(videos, index)])
    print(f"{GENERATED} generated clips", flush=True)


def collage(videos: Sequence[np.ndarray], seed: int) -> Tensor:
    """A generated clip, uint8 [LENGTH,3,SIDE,SIDE]: blobs of real images move over a real image that is panned.

    Each layer is a part of a frame with changed colors that moves, scales and rotates smoothly.
    """
    generator = torch.Generator().manual_seed(seed)
    clip = torch.zeros(LENGTH, 3, SIDE, SIDE)
    for layer in range(int(torch.randint(3, 6, (), generator=generator))):
        image = _still(videos, generator)
        alpha = torch.ones(1, SIDE, SIDE) if layer == 0 else _blob(generator)
        scale = _smooth(generator, 0.5, 0.9) if layer == 0 else _smooth(generator, 1.5, 5.0)
        angle = _smooth(generator, -0.4, 0.4)
        # In units of half the image; little of the region outside the background is visible, and it is reflected.
        reach = 0.3 if layer == 0 else 1.0
        x, y = (scale * _smooth(generator, -reach, reach) for _ in range(2))
        rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).reshape(-1, 2, 2)
        map_ = torch.cat([scale[:, None, None] * rotation, torch.stack([x, y], 1)[:, :, None]], 2)
        grid = F.affine_grid(map_, [LENGTH, 3, SIDE, SIDE], align_corners=False)
        layer_image = F.grid_sample(
            image.expand(LENGTH, -1, -1, -1), grid, padding_mode="reflection", align_corners=False
        )
        cover = F.grid_sample(
            alpha.expand(LENGTH, -1, -1, -1), grid, padding_mode="border" if layer == 0 else "zeros",
            align_corners=False,
        )  # fmt: skip
        clip = clip + cover * (layer_image - clip)
    return (255 * clip).round().clamp(0, 255).byte()


def _still(videos: Sequence[np.ndarray], generator: torch.Generator) -> Tensor:
    """A square part of a frame, [3,SIDE,SIDE] in 0..1, with changed colors."""
    video = videos[int(torch.randint(len(videos), (), generator=generator))]
    frame = torch.from_numpy(video[int(torch.randint(len(video), (), generator=generator))].copy()).permute(2, 0, 1)
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
    """A smooth random curve between two bounds, [LENGTH]: the sum of three slow waves."""
    time_ = torch.linspace(0, 1, LENGTH)
    turns, phase, height = (torch.rand(3, 1, generator=generator) for _ in range(3))
    wave = (height * (2 * torch.pi * (1.5 * turns * time_ + phase)).sin()).sum(0) / height.sum()
    return low + (high - low) * (0.5 + 0.5 * wave)


def footage(work: Path) -> list[Footage]:
    real, generated = (find_footage(work / "frames" / part).items for part in ("real", "made"))
    return [*(real * REAL_REPEATS), *generated]


def recipe_of(name: str, seed: int, steps: int, items: int, workers: int) -> PretrainingRecipe:
    """The recipe of a run, with the same number of images for all."""
    objective, changes = RUNS[name]
    steps = round(steps * (SHORT if name in ABLATIONS else 2 if name in LONG else 1))
    settings = {
        "steps": steps * 2 // PRETRAINING[objective].frames, "seed": seed, "precision": "bf16", "batch": 32, "lr": 1e-3,
        "warmup": 0.05, "visits": max(1, 6400 // items),
        "workers": workers, "eval_every": 5.0, "save_every": 200, "log_every": 50, "shown": 8,
        **NETWORK,
    }  # fmt: skip
    return make_pretraining(f"{objective}_tiny", **(settings | changes))


def folder_of(work: Path, name: str, seed: int) -> Path:
    """The folder of a run; its encoder is in model/."""
    return work / "runs" / f"{name.replace(', ', '-').replace(' ', '_')}-{seed}"


def runs(only: list[str], seeds: list[int]) -> Iterator[tuple[str, int]]:
    """All runs, ordered by seed, so that the first seed of each finishes first."""
    for seed in seeds:
        for name in only:
            yield name, seed


def chosen(text: str | None, names: Sequence[str]) -> list[str]:
    """The names in a list separated by ';'; all if there is no list."""
    only = [name.strip() for name in text.split(";")] if text else list(names)
    if unknown := [name for name in only if name not in names]:
        sys.exit(f"unknown name {', '.join(unknown)}; names: {'; '.join(names)}")
    return only


def train(work: Path, only: list[str], seeds: list[int], steps: int, workers: int, device: str | None) -> None:
    items = footage(work)
    for name, seed in runs(only, seeds):
        out, recipe = folder_of(work, name, seed), recipe_of(name, seed, steps, len(items), workers)
        start = time.strftime("%H:%M")
        report = pretrain_on(device, items, recipe, out)
        step_seconds = report.seconds / max(1, report.steps - report.resumed_at)
        scores = "  ".join(f"{key} {value:.3f}" for key, value in report.scores.items())
        waiting = 100 * report.waiting / max(report.seconds, 1e-9)
        print(
            f"{start} {name:20s} seed {seed}  {report.steps} steps, {step_seconds:.2f} s per step, "
            f"{waiting:.0f} % waiting  {scores}",
            flush=True,
        )


def pretrain_on(device: str | None, items: list[Footage], recipe: PretrainingRecipe, out: Path) -> Report:
    if device == "cpu" or not torch.cuda.is_available():
        # For such short sequences the math kernel is a quarter faster on a CPU.
        with sdpa_kernel(SDPBackend.MATH):
            return pretrain(items, recipe, out, device="cpu")
    return pretrain(items, recipe, out)


def cost(work: Path, only: list[str], workers: int, device: str | None) -> None:
    """Writes the seconds per step of each objective to WORK/cost.json; run it alone, preferably on one core."""
    items, path = footage(work), work / "cost.json"
    seconds = json.loads(path.read_text()) if path.exists() else {}
    for name in [name for name in only if name not in (*ABLATIONS, *LONG)]:
        durations, steps = [], []
        # The shorter run is subtracted from the longer one, to exclude the time to start and finish.
        for length in (TIMED, 3 * TIMED):
            recipe = recipe_of(name, 0, length, len(items), workers)
            with TemporaryDirectory() as folder:
                report = pretrain_on(device, items, recipe, Path(folder) / "run")
            durations.append(report.seconds)
            steps.append(report.steps)
        seconds[name] = (durations[1] - durations[0]) / (steps[1] - steps[0])
        print(f"{name:20s} {seconds[name]:.3f} s per step on {torch.get_num_threads()} threads", flush=True)
    path.write_text(json.dumps(seconds, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=("frames", "train", "cost"), help="parts to run")
    parser.add_argument("--work", type=Path, required=True, help="directory of frames and runs")
    parser.add_argument("--only", help=f"runs, separated by ';' (default: all): {'; '.join(RUNS)}")
    parser.add_argument("--seeds", default="0", help="comma-separated seeds (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=STEPS, help="steps of runs on pairs; twice as many for MAE (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=1, help="data workers (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; 0 for all cores")
    parser.add_argument("--device", choices=("cpu",), help="force the CPU even if a GPU is available")
    options = parser.parse_args()
    only = chosen(options.only, list(RUNS))
    if options.threads:
        torch.set_num_threads(options.threads)
    if "frames" in options.parts:
        frames(options.work)
    if "train" in options.parts:
        seeds = [int(seed) for seed in options.seeds.split(",")]
        train(options.work, only, seeds, options.steps, options.workers, options.device)
    if "cost" in options.parts:
        cost(options.work, only, options.workers, options.device)


if __name__ == "__main__":
    main()
