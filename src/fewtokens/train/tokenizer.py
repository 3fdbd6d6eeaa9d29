"""Trains a tokenizer on videos without labels: from footage to a folder that `load_tokenizer` reads.

In addition to the files of `fit` (see `fewtokens.train.loop`) the output directory contains

    reconstructions.png   the middle frames of fixed clips: original, reconstruction, error
    index.html            curves, reconstructions and numbers on one page

and metrics.jsonl contains, for each evaluation, scores on fixed clips: psnr in dB, and that of the mean frame of each
clip, the line to beat; usage, the perplexity of the codes relative to the largest possible one.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewtokens.data.footage import Footage
from fewtokens.data.pairs import PairData, collate_pairs, first_valid_sample
from fewtokens.evaluation.reconstruction.metrics import psnr
from fewtokens.methods.ops.codes import usage
from fewtokens.show.run_page import write_run_page
from fewtokens.show.side_by_side import rows_of
from fewtokens.show.strips import draw_strips
from fewtokens.tokenizers.tokenizer import Tokenizer
from fewtokens.train.curves import draw_curves
from fewtokens.train.inputs import Input, footage_input
from fewtokens.train.loop import Progress, Report, fit
from fewtokens.train.optimizer import unshard
from fewtokens.train.settings import plain
from fewtokens.train.tokenizer_losses import Discriminator, Perceptual, adaptive_weight, pixel_loss
from fewtokens.train.tokenizer_recipe import TokenizerRecipe, build_tokenizer

# Added to the seed, so that the fixed clips differ from the samples of every step.
_FIXED = 1_000_003
# A codebook has collapsed if the perplexity is a smaller part of the largest possible one.
_COLLAPSED = 0.05


class ReconstructionObjective:
    """The losses of a tokenizer: reconstruction, those of its parts, perceptual and adversarial ones.

    Args:
        recipe: weights of the losses.
        tokenizer: the tokenizer, which gets a counter of its steps, and a discriminator if the loss is adversarial, so
            that both are part of a checkpoint. `finish` removes them.
    """

    def __init__(self, recipe: TokenizerRecipe, tokenizer: Tokenizer) -> None:
        self.recipe, self.tokenizer = recipe, tokenizer
        tokenizer.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        if recipe.gan_weight:
            tokenizer.discriminator = Discriminator(recipe.gan_width)
        self.perceptual = Perceptual(recipe.perceptual) if recipe.perceptual else None

    def __call__(
        self, model: nn.Module, batch: dict[str, Any], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        recipe = self.recipe
        counter = self.tokenizer.get_buffer("steps")
        step = int(counter) // recipe.accumulate  # called once for each part of a batch
        counter += 1
        frames = batch["frames"]
        if step < recipe.images:
            # One frame of each clip.
            index = torch.randint(frames.shape[1], (len(frames),), generator=generator)
            frames = frames[torch.arange(len(frames)), index][:, None]
        result = model(frames)
        losses = dict(result.losses)
        target = result.target
        if result.frames is not None:
            losses["pixel"] = pixel_loss(recipe.pixel, result.frames, target)
            if self.perceptual is not None:
                distance, gram = self.perceptual(result.frames, target)
                losses["perceptual"] = recipe.perceptual_weight * distance
                if recipe.gram_weight:
                    losses["gram"] = recipe.gram_weight * gram
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        if recipe.gan_weight and result.frames is not None:
            adversarial, own = self._adversarial(result.frames, target, total, step)
            losses |= {"adversarial": adversarial, "discriminator": own}
            total = total + adversarial + own
        return total, {name.replace(".", "_"): loss.detach() for name, loss in losses.items()}

    def _adversarial(self, decoded: Tensor, target: Tensor, reconstruction: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The losses of decoder and discriminator; zero, with zero gradients, before `gan_start`."""
        discriminator = self.tokenizer.discriminator
        assert isinstance(discriminator, Discriminator)
        if step < self.recipe.gan_start:
            nothing = torch.stack([parameter.sum() for parameter in discriminator.parameters()]).sum() * 0
            return torch.zeros_like(nothing), nothing
        loss = discriminator.generator_loss(decoded)
        # The weight of the last layer, not its bias; the frames if the decoder is frozen.
        weights = [p for p in self.tokenizer.decoder.parameters() if p.requires_grad and p.ndim > 1]
        weight = self.recipe.gan_weight * adaptive_weight(reconstruction, loss, weights[-1] if weights else decoded)
        return weight * loss, discriminator.own_loss(decoded, target, self.recipe.lecam)

    def finish(self) -> None:
        """Removes what the tokenizer needs only for training."""
        del self.tokenizer.steps
        if self.recipe.gan_weight:
            del self.tokenizer.discriminator


class FixedClips:
    """Evaluates fixed clips: PSNR, that of their mean frames, and the codes that occur.

    Args:
        data: videos to take the clips from, one for each video.
        num_clips: number of clips.
        out: output directory.
    """

    def __init__(self, data: PairData, num_clips: int, out: Path) -> None:
        order = torch.randperm(len(data.items), generator=torch.Generator().manual_seed(data.seed))
        fixed = PairData(data.items, replace(data.pairing, repeats=1), seed=data.seed + _FIXED)
        samples = (fixed[index] for index in order.tolist())
        clips = islice((sample for sample in samples if sample.frames is not None), num_clips)
        self.frames: Tensor = collate_pairs(list(clips))["frames"][:num_clips]
        self.out = out

    def __call__(self, model: nn.Module) -> dict[str, float]:
        assert isinstance(model, Tokenizer)
        frames = self.frames.to(model.device)
        encoded = [model.encode(clip) for clip in frames]
        decoded = torch.cat([model.decode(tokens) for tokens in encoded])
        target = frames.float() / 255
        still = target.mean(1, keepdim=True).expand_as(target)
        scores = {"psnr": float(psnr(target, decoded).mean()), "psnr_mean_frame": float(psnr(target, still).mean())}
        if model.quantizer is not None:
            codes, sizes = zip(*map(model.codes_by_book, encoded), strict=True)
            scores |= {"usage": effective_use(torch.cat(codes), sizes[0])}
        from accelerate import PartialState

        if PartialState().is_main_process:
            middle = frames.shape[1] // 2
            original, result = frames[:, middle].cpu(), (decoded[:, middle].cpu() * 255).round().byte()
            caption = "The middle frame of fixed clips, which are not trained on if a list for evaluation is given."
            draw_strips(
                rows_of(original, result), self.out / "reconstructions.png", title="Reconstructions", caption=caption
            )
        return scores


def effective_use(codes: Tensor, sizes: Sequence[int]) -> float:
    """The perplexity of codes, divided by the largest possible one; the minimum over the codebooks.

    Near 0 if a codebook has collapsed: n codes of a book of K entries can have a perplexity of min(n, K).

    Args:
        codes: int64 [n,K], see `Tokenizer.codes_by_book`; -1 for no code.
        sizes: number of entries of each of the K codebooks.
    """
    counts = (codes >= 0).sum(0)
    perplexity = usage(codes[None], sizes).perplexity
    largest = torch.minimum(counts, torch.tensor(sizes, device=codes.device)).clamp(min=1)
    return float((perplexity / largest)[counts > 0].amin()) if bool((counts > 0).any()) else 0.0


def train_tokenizer(
    items: Sequence[Footage],
    recipe: TokenizerRecipe,
    out: str | Path,
    *,
    evaluation: Sequence[Footage] = (),
    tokenizer: Tokenizer | None = None,
    initial: Input | None = None,
    resume: bool = True,
    progress: Progress | None = None,
    device: str | None = None,
) -> Report:
    """Trains a tokenizer and saves it in OUT/tokenizer.

    Args:
        items: videos; see `fewtokens.data.footage.find_footage`.
        recipe: all settings.
        out: output directory; an interrupted run in it is resumed.
        evaluation: videos whose clips are scored. Default: those that it is trained on.
        tokenizer: a tokenizer to train further, instead of `build_tokenizer(recipe)`.
        initial: where it comes from, for the record of the run.
        resume, progress, device: as for `fit`.

    Raises:
        ValueError: no video provides a sample, or adversarial training with several processes.
        ValueError, OSError, Stopped: as `fit`.
    """
    from accelerate import PartialState

    out = Path(out)
    if recipe.gan_weight and PartialState(cpu=device == "cpu").num_processes > 1:
        raise ValueError("the adversarial loss runs in one process; set gan_weight=0 or use one GPU")
    if recipe.gan_weight and recipe.gan_start < min(2000, recipe.steps):
        warnings.warn(
            f"gan_start={recipe.gan_start}: before a tokenizer reconstructs, a discriminator is easily right and its "
            "gradient misleads; published tokenizers start at 2,000 steps or later",
            stacklevel=2,
        )
    model = build_tokenizer(recipe) if tokenizer is None else tokenizer
    data = PairData(items, recipe.pairing, seed=recipe.seed, visits=recipe.visits)
    first_valid_sample(data)
    out.mkdir(parents=True, exist_ok=True)
    inputs = {"data": footage_input(items)}
    if evaluation:
        inputs["eval"] = footage_input(evaluation)
    if initial is not None:
        inputs["initial tokenizer"] = initial
    objective = ReconstructionObjective(recipe, model)
    scored = PairData(evaluation or items, recipe.pairing, seed=recipe.seed)
    report = fit(
        model,
        objective,
        data,
        recipe,
        out,
        collate=collate_pairs,
        evaluate=FixedClips(scored, recipe.shown, out),
        inputs=inputs,
        resume=resume,
        progress=progress,
        device=device,
    )
    objective.finish()
    if report.scores.get("usage", 1) < _COLLAPSED:
        warnings.warn(
            f"the codebook has collapsed: the perplexity of its codes is {100 * report.scores['usage']:.1f} % of the "
            "largest possible one; use fsq, a codebook with restarts, or a larger entropy weight",
            stacklevel=2,
        )
    unshard(model)
    if PartialState().is_main_process:
        details = {"clip": [recipe.frames, recipe.size, recipe.size], "seed": recipe.seed, "steps": report.steps}
        model.save_pretrained(out / "tokenizer", trained={**details, "scores": report.scores})
        write_report(out, recipe, report)
    return report


def write_report(out: Path, recipe: TokenizerRecipe, report: Report) -> Path:
    """Plots the curves and writes the report page of a run."""
    title = f"{recipe.tokenizer[:60]}, {report.steps} steps"
    caption = "Losses during training, and scores on fixed clips; psnr_mean_frame is the mean frame of each clip."
    draw_curves(
        report.metrics,
        out / "curves.png",
        panels=[["psnr", "psnr_mean_frame"]],
        title=title,
        caption=caption,
    )
    last: dict[str, Any] = {}
    for line in report.metrics:
        last |= line
    last |= {"waiting for data, %": round(100 * report.waiting / max(report.seconds, 1e-9), 1)}
    return write_run_page(
        out / "index.html",
        title=title,
        note="psnr is in dB, the mean over frames; psnr_mean_frame is that of the mean frame of each clip.",
        numbers=last,
        images=[
            ("Losses and scores", caption, out / "curves.png"),
            ("Fixed clips", "Middle frames: original, reconstruction, error.", out / "reconstructions.png"),
        ],
        settings=plain(recipe),
    )
