"""Trains a classifier of images or videos: from files to a saved network, with `fewtokens.train.loop`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from fewtokens import networks as models
from fewtokens.data import ClipData, Listing, Transform, View, collate, read_listing
from fewtokens.evaluation.classify import classification_scores, evaluator, predict
from fewtokens.networks.inflate import BLOCK_SETTINGS, initialize_from, matching_config
from fewtokens.train.curves import draw_curves
from fewtokens.train.inputs import Input, listing_input
from fewtokens.train.loop import Progress, Report, fit
from fewtokens.train.objectives import Classification
from fewtokens.train.optimizer import unshard
from fewtokens.train.settings import Recipe


def find_data(
    data: str | Path, *, validation: str | Path | None = None, share: float = 0.1, root: str | Path | None = None,
    seed: int = 0,
) -> tuple[Listing, Listing]:  # fmt: skip
    """Returns the training data and the test data.

    Args:
        data: see `read_listing`; or a folder with folders train and val (or validation, or test) of that form.
        validation: the test data, in the same form; if it is neither given nor found, a part of `data` is held out.
        share: the fraction of each class that is held out, sampled with `seed`.
        root: the folder of the files in lists.
        seed: random seed.

    Raises:
        ValueError: no data, or classes in the test data that the training data does not have.
    """
    data, test = split_folders(Path(data), validation)
    training = read_listing(data, root=root)
    if test is None:
        return training.split(share, seed)
    return training, as_labeled(read_listing(test, root=root, classes=training.classes), training.multi_label)


def as_labeled(test: Listing, multi_label: bool) -> Listing:
    """Test data with as many labels per item as the training data may have.

    Raises:
        ValueError: items have several labels, but those of the training data have one.
    """
    if test.multi_label and not multi_label:
        raise ValueError("the test data has items with several labels, but the training data has one label per item")
    return replace(test, multi_label=multi_label)


def holds_out_data(data: str | Path, validation: str | Path | None) -> bool:
    """Whether `find_data` holds out a part of `data` for testing."""
    return split_folders(Path(data), validation)[1] is None


def split_folders(data: Path, validation: str | Path | None) -> tuple[Path, Path | None]:
    """Returns where the data to train on and to test on are; None for a part of the former that is held out."""
    if validation is not None or not (data / "train").is_dir():
        return data, None if validation is None else Path(validation)
    folders = [data / name for name in ("val", "validation", "test") if (data / name).is_dir()]
    return data / "train", folders[0] if folders else None


def datasets(training: Listing, test: Listing, recipe: Recipe) -> tuple[ClipData, ClipData]:
    """Returns the training clips of a recipe, and the views for evaluation during training (one per item)."""
    transform = Transform(
        size=recipe.size,
        resize=recipe.resize,
        scale=recipe.scale,
        area=recipe.area,
        flip=recipe.flip,
        color=recipe.color,
        gray=recipe.gray,
    )
    view = View(frames=recipe.frames, stride=recipe.stride, fps=recipe.fps or None)
    return (
        ClipData(training, transform, view, training=True, seed=recipe.seed, keep=recipe.keep),
        ClipData(test, transform, view, training=False, keep=recipe.keep),
    )


def prepare(name: str, training: Listing, recipe: Recipe, *, start: str | Path | None = None) -> models.Model:
    """Builds a network for these classes and clips.

    Args:
        name: a preset, or the folder of a saved network to train further.
        training: the training data, for its classes.
        recipe: the recipe, for its size and frames.
        start: an image network to initialize from; see `fewtokens.networks.inflate`.
    """
    classes = len(training.classes)
    if models.is_saved(name):
        if start is not None:
            raise ValueError(f"{name} is a trained network, which needs no image network to start from; omit --init")
        model = models.load(name)
        if model.config.num_classes != classes:
            model = _new_head(model, classes, recipe.head_bias)
        return model
    kind, _ = models.preset(name)
    changes: dict[str, Any] = {"num_classes": classes, "num_frames": recipe.frames}
    if kind is models.VisionTransformer:
        changes |= {"image_size": (recipe.size, recipe.size), "head_bias": recipe.head_bias}
    if start is not None:
        if kind is not models.VisionTransformer:
            raise ValueError(f"{name} is not a ViT and cannot be initialized from one")
        if not models.is_saved(start):
            # The settings of its blocks, which its weights depend on.
            config = matching_config(start)
            changes |= {part: getattr(config, part) for part in (*BLOCK_SETTINGS, "mean", "std")}
    model = models.build(name, **changes)
    if isinstance(model, models.VisionTransformer) and start is not None:
        initialize_from(model, start, positions="resize_tile")
    return model


def _new_head(model: models.Model, classes: int, bias: float) -> models.Model:
    """Returns the same network with a new head for other classes."""
    changed = type(model)(replace(model.config, num_classes=classes))
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("head.")}
    changed.load_state_dict(changed.state_dict() | state)
    nn.init.constant_(changed.classifier.bias, bias)
    return changed


def train_classifier(
    model: models.Model,
    training: Listing,
    test: Listing,
    recipe: Recipe,
    out: str | Path,
    *,
    inputs: Mapping[str, Input] | None = None,
    resume: bool = True,
    progress: Progress | None = None,
    device: str | None = None,
    held_out: float | None = None,
) -> Report:
    """Trains a network, saves it in OUT/model and plots its curves in OUT/curves.png.

    The final scores are those of all views of the recipe.

    Args:
        model: see `prepare`.
        training, test: see `find_data`.
        recipe: all settings.
        out: output directory.
        inputs: what the network was made from, by name; see `fit`. The data is always recorded.
        resume, progress, device: as for `fit`.
        held_out: the fraction of the data that was held out as `test`; saved with the network, so that the split can
            be repeated.

    Raises:
        ValueError, OSError, Stopped: as `fit`.
    """
    out = Path(out)
    if recipe.freeze:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("head."))
    loss = "sigmoid" if training.multi_label else recipe.loss
    objective = Classification(loss, recipe.label_smoothing, recipe.mixup, recipe.cutmix)
    data, views = datasets(training, test, recipe)
    options: dict[str, Any] = {
        "batch": max(1, recipe.batch // recipe.accumulate),
        "workers": recipe.workers,
        "loss": loss,
    }
    report = fit(
        model,
        objective,
        data,
        recipe,
        out,
        collate=collate,
        evaluate=evaluator(views, **options),
        inputs={"data": listing_input(training), "test data": listing_input(test), **(inputs or {})},
        resume=resume,
        progress=progress,
        device=device,
    )
    if recipe.clips * recipe.crops > 1:
        views.view = replace(views.view, clips=recipe.clips, crops=recipe.crops)
        scores, targets, broken = predict(model, views, **options)
        report.scores = classification_scores(scores, targets)
        report.broken = list(dict.fromkeys([*report.broken, *broken]))
    from accelerate import PartialState

    unshard(model)
    if PartialState().is_main_process:
        model.save_pretrained(out / "model", **_meta(training, recipe, report.scores, held_out))
        draw_curves(report.metrics, out / "curves.png", title=f"Classification, {report.steps} steps")
    return report


def _meta(training: Listing, recipe: Recipe, scores: dict[str, float], held_out: float | None) -> dict[str, Any]:
    return {
        "labels": list(training.classes),
        "multi_label": training.multi_label,
        "trained": {
            "size": recipe.size,
            "resize": recipe.resize,
            "frames": recipe.frames,
            "stride": recipe.stride,
            "fps": recipe.fps,
            "loss": recipe.loss,
            "seed": recipe.seed,
            "held_back": held_out,
            "scores": scores,
        },
    }
