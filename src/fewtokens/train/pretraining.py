"""Pre-trains an encoder on videos: from footage to a folder that `load_encoder` reads.

In addition to the files of `fit` (see `fewtokens.train.loop`) the output directory contains

    reconstructions.png   the fixed batch: source, target, its visible patches, and the prediction of each path
    index.html            curves, reconstructions and numbers on one page

and metrics.jsonl contains, for each evaluation, the losses of the fixed batch: `tobo_own` with each sample's own
source, `tobo_swapped` with that of another video. If these are equal, the bottleneck carries no information.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewtokens.core.grid import Grid
from fewtokens.data.footage import Footage
from fewtokens.data.pairs import PairData, collate_pairs, first_valid_sample, mask_noise
from fewtokens.encoders.frames import IMAGENET_MEAN, IMAGENET_STD, unpatchify
from fewtokens.networks.masking import patch_pixels
from fewtokens.networks.pretrained import PRETRAINING
from fewtokens.networks.pretraining import Pretraining
from fewtokens.networks.rsp import Rsp
from fewtokens.show.run_page import write_run_page
from fewtokens.show.strips import draw_strips
from fewtokens.train.curves import draw_curves
from fewtokens.train.inputs import footage_input
from fewtokens.train.loop import Progress, Report, fit
from fewtokens.train.optimizer import unshard
from fewtokens.train.pretraining_presets import PretrainingRecipe
from fewtokens.train.settings import plain

# Added to the seed, so that the fixed batch differs from the samples of every step.
_FIXED = 1_000_003


@dataclass(frozen=True)
class MaskedPairs:
    """The objective of all pre-training networks: their own loss, with masks that depend on the seeds of the samples.

    Attributes:
        patches: the number of patches of a frame.
    """

    patches: int

    def __call__(
        self, model: nn.Module, batch: dict[str, Any], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        frames = batch["frames"]
        losses = model(frames, mask_noise(batch["seeds"], self.patches).to(frames.device))
        return losses.pop("loss"), losses


class FixedBatchEvaluator:
    """Evaluates a fixed batch, with one sample per video: losses with own sources and with swapped ones.

    Args:
        data: the training data.
        num_samples: the number of samples.
        out: output directory.
    """

    def __init__(self, data: PairData, num_samples: int, out: Path) -> None:
        # A video may be listed more than once, but a swapped source must be of another video.
        items = list(dict.fromkeys(data.items))
        fixed_data = PairData(items, replace(data.pairing, repeats=1), seed=data.seed + _FIXED)
        order = torch.randperm(len(items), generator=torch.Generator().manual_seed(data.seed))
        samples = (fixed_data[index] for index in order.tolist())
        batch = collate_pairs(list(islice((sample for sample in samples if sample.frames is not None), num_samples)))
        self.frames: Tensor = batch["frames"]
        self.seeds: list[int] = batch["seeds"]
        self.out = out

    def __call__(self, model: nn.Module) -> dict[str, float]:
        assert isinstance(model, Pretraining)
        device = next(model.parameters()).device
        noise = mask_noise(self.seeds, model.config.patches).to(device)
        frames = self.frames.to(device)
        scores = own_and_swapped(model, frames, noise)
        from accelerate import PartialState

        if PartialState().is_main_process:
            draw_strips(
                reconstructions(model, frames, noise),
                self.out / "reconstructions.png",
                title="Reconstructions of a fixed batch",
                caption=f"{len(frames)} samples of different videos, side by side. Patches have the mean and standard "
                "deviation of the target; visible patches are shown unchanged.",
            )
        return scores


def own_and_swapped(model: Pretraining, frames: Tensor, noise: Tensor) -> dict[str, float]:
    """Returns the loss of each path, PATH_own, and with the source of the previous sample, PATH_swapped.

    Args:
        model: the network.
        frames: uint8 [n,F,3,H,W], consecutive samples of different videos.
        noise: [n,patches], for the masks.
    """
    own = {name: float(value) for name, value in model(frames, noise).items() if name not in ("loss", "kl")}
    scores = {f"{name}_own": value for name, value in own.items()}
    if model.frames > 1 and len(frames) > 1:
        swapped = torch.stack([frames[:, 0].roll(1, 0), frames[:, 1]], 1)
        # Predictions from the target alone do not depend on the source.
        other = model(swapped, noise)
        scores |= {f"{name}_swapped": float(other[name]) for name in own if name != "mae"}
    return scores


def reconstructions(model: Pretraining, frames: Tensor, noise: Tensor) -> list[tuple[str, Tensor]]:
    """Returns named rows of images uint8 [n,3,H,W]: source, target, its visible patches, and the path's predictions.

    A prediction contains the normalized pixels of a patch; mean and standard deviation are the target's. Visible
    patches are shown unchanged, except for paths that predict all patches.
    """
    source, target = model.split(frames)
    prediction = model.predict(source, target, noise)
    config = model.config
    pixels = patch_pixels(target, config.patch_size)
    mean, std = pixels.mean(-1, keepdim=True), (pixels.var(-1, keepdim=True) + 1e-6).sqrt()
    grid = Grid(*config.grid)
    pixel_mean, pixel_std = (
        torch.tensor(value, device=target.device)[:, None, None] for value in (IMAGENET_MEAN, IMAGENET_STD)
    )

    def to_image(patches: Tensor) -> Tensor:
        image = unpatchify(patches[:, :, None], grid, 1, config.patch_size)[:, 0]
        return ((image * pixel_std + pixel_mean).clamp(0, 1) * 255).round().byte().cpu()

    def fill(predicted: Tensor, hidden: Tensor | None) -> Tensor:
        full = predicted.float() * std + mean
        return to_image(full if hidden is None else torch.where(hidden[..., None], full, pixels))

    rows = [] if model.frames == 1 else [("source", to_image(patch_pixels(source, config.patch_size)))]
    rows += [("target", to_image(pixels)), ("visible patches", fill(torch.zeros_like(pixels) - mean / std,
                                                               prediction.mask.hidden))]  # fmt: skip
    names = {"tobo": "from one token\n(tobo)", "siam": "from all tokens\n(siam)", "mae": "from itself\n(mae)",
             "rsp": "posterior\n(rsp)"}  # fmt: skip
    rows += [(names[name], fill(*path)) for name, path in prediction.paths.items()]
    if isinstance(model, Rsp):
        rows.append(("prior\n(rsp)", fill(model.imagine(source), None)))
    return rows


def build_pretraining(recipe: PretrainingRecipe) -> Pretraining:
    """Builds the network of a recipe; its parameters are initialized with the recipe's seed."""
    torch.manual_seed(recipe.seed)
    return PRETRAINING[recipe.objective](recipe.config())


def pretrain(
    items: Sequence[Footage],
    recipe: PretrainingRecipe,
    out: str | Path,
    *,
    model: Pretraining | None = None,
    resume: bool = True,
    progress: Progress | None = None,
    device: str | None = None,
) -> Report:
    """Pre-trains an encoder and saves it, with its decoder, in OUT/model.

    Args:
        items: videos; see `fewtokens.data.footage.find_footage`.
        recipe: all settings.
        out: output directory; an interrupted run in it is resumed.
        model: the network, instead of `build_pretraining(recipe)`.
        resume, progress, device: as for `fit`.

    Raises:
        ValueError: no video provides a sample.
        ValueError, OSError, Stopped: as `fit`.
    """
    out = Path(out)
    model = build_pretraining(recipe) if model is None else model
    data = PairData(items, recipe.pairing, seed=recipe.seed, visits=recipe.visits)
    first_valid_sample(data)
    out.mkdir(parents=True, exist_ok=True)
    report = fit(
        model,
        MaskedPairs(model.config.patches),
        data,
        recipe,
        out,
        collate=collate_pairs,
        evaluate=FixedBatchEvaluator(data, recipe.shown, out),
        inputs={"data": footage_input(items)},
        resume=resume,
        progress=progress,
        device=device,
    )
    from accelerate import PartialState

    unshard(model)
    if PartialState().is_main_process:
        details = {"objective": recipe.objective, "size": recipe.size, "seed": recipe.seed, "steps": report.steps}
        model.save_pretrained(out / "model", trained={**details, "scores": report.scores})
        write_report(out, recipe, report)
    return report


def write_report(out: Path, recipe: PretrainingRecipe, report: Report) -> Path:
    """Plots the curves and writes the report page of a run."""
    paths = [name.removesuffix("_own") for name in report.scores if name.endswith("_own")]
    pairs = [[f"{path}_own", f"{path}_swapped"] for path in paths]
    lines = [{name: value for name, value in line.items() if name != "loss"} for line in report.metrics]
    title = f"{recipe.objective}, {report.steps} steps"
    caption = "Loss of each path: during training, and on a fixed batch with own and swapped sources."
    draw_curves(lines, out / "curves.png", panels=[paths, *pairs], title=title, caption=caption)
    last: dict[str, Any] = {}
    for line in report.metrics:
        last |= line
    waited = 100 * report.waiting / max(report.seconds, 1e-9)
    last |= {"waiting for data, %": round(waited, 1), "videos or visits that could not be pairs": len(report.broken)}
    settings = plain(recipe)
    return write_run_page(
        out / "index.html",
        title=title,
        note="The loss of each path with its own source and with that of another video: if they are equal, the "
        "source carries no information.",
        numbers=last,
        images=[
            ("Losses", "Of each path during training; then on the fixed batch, with own and swapped sources.",
             out / "curves.png"),
            ("A fixed batch", "Predictions have the mean and standard deviation of the target's patches; visible "
             "patches are shown unchanged.", out / "reconstructions.png"),
        ],
        settings={**settings, **settings.pop("network")},
    )  # fmt: skip
