"""Shared by the probes: options, and features of a frozen encoder on which a small model is fitted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewtokens.cli.command import Mode
from fewtokens.cli.errors import check_exists, refuse
from fewtokens.cli.eval.views import LabeledOptions, LoadOptions, ViewOptions, clip_data, make_views, print_scores
from fewtokens.cli.options import (
    ENCODER,
    INPUT,
    Check,
    EncoderOptions,
    JsonOption,
    MethodOptions,
    RunOptions,
    SeedOption,
    check_model,
    find_model,
)
from fewtokens.cli.pipelines import make_pipeline
from fewtokens.cli.progress import progress

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ProbeOptions(LoadOptions, ViewOptions, MethodOptions):
    """Options that the probes share."""

    encoder: Annotated[
        str,
        typer.Option(
            "--encoder",
            help="patches (pixels, no weights), a folder (also of a trained network), or a hub id.",
            rich_help_panel=ENCODER,
        ),
        Check(check_model, find_model),
    ] = "patches"
    feature: Annotated[
        str,
        typer.Option(
            "--feature",
            help="Feature of a clip: mean (of its tokens) or class (its class token).",
            rich_help_panel=ENCODER,
        ),
    ] = "mean"
    share: Annotated[
        float,
        typer.Option(
            "--val-share",
            help="Fraction of each class held out for testing if --val is not given.",
            rich_help_panel=INPUT,
        ),
    ] = 0.2
    seed: SeedOption = 0
    as_json: JsonOption = False


MODES = (
    Mode(
        "test set", lambda values: values["validation"] is not None, ("share",), "have no effect with --val"
    ),
)  # fmt: skip


def run_probe(
    context: typer.Context, task: str, labeled: LabeledOptions, options: ProbeOptions,
    fit: Callable[..., dict[str, Any]], settings: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Encodes both sets and prints the scores of `fit(features, labels, test_features, test_labels)`."""
    check_exists(labeled.data, labeled.validation)
    from fewtokens import networks as models
    from fewtokens.encoders import pick_device
    from fewtokens.evaluation.probes import extract_features
    from fewtokens.train.classify import find_data

    trained = models.is_saved(options.encoder)
    if trained:
        refuse(context, ("feature",), "have no effect on a trained network, which pools as in training")
        refuse(context, ("spec", "keep"), "have no effect on a trained network, which reduces tokens as in training")
    views = make_views(options, models.read_meta(options.encoder).get("trained", {}) if trained else {})
    listings = find_data(
        labeled.data, validation=labeled.validation, share=options.share, root=labeled.root, seed=options.seed
    )
    if listings[0].multi_label:
        raise ValueError("probes require one class per item; for several classes, use train classify and eval classify")
    features = _features(options, trained)
    sets = []
    broken: list[str] = []
    for title, listing in zip(("training items", "test items"), listings, strict=True):
        items = clip_data(listing, views)
        with progress(title, len(items)) as advance:
            x, y, bad = extract_features(
                features, items, device=pick_device(options.device), batch=options.batch, workers=options.workers,
                progress=advance,
            )  # fmt: skip
        sets += [x, y]
        broken += bad
    scores = fit(*sets) | {"items": len(sets[3]), "training_items": len(sets[1])}
    more = {"spec": options.spec, "feature": "as trained" if trained else options.feature, "seed": options.seed}
    more |= settings or {}
    print_scores(task, options.encoder, views, more, scores, broken, options.as_json)


def _features(options: ProbeOptions, trained: bool) -> Callable[[Tensor], Tensor]:
    """Returns the function of clips [B,T,3,H,W] to features [B,C]."""
    from fewtokens import networks as models
    from fewtokens.encoders import pick_device

    if trained:
        return models.load(options.encoder).to(pick_device(options.device)).features
    if options.feature not in ("mean", "class"):
        raise ValueError(f"--feature must be mean or class, got {options.feature!r}")
    encoding = EncoderOptions(options.encoder, batch=options.batch)
    pipeline = make_pipeline(options, encoding, RunOptions(options.device, options.seed))

    def run(clips: Tensor) -> Tensor:
        tokens = pipeline(clips)
        if options.feature == "class":
            if tokens.prefix is None:
                raise ValueError(f"{options.encoder} has no class token; give --feature mean")
            return tokens.prefix.unflatten(1, (tokens.grid.T, -1))[:, :, 0].mean(1)
        weight = tokens.sizes[..., None] * tokens.mask[..., None]
        return (tokens.features.float() * weight).sum(1) / weight.sum(1)

    return run
