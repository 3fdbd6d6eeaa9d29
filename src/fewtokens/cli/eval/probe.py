"""What the probes share: features of a frozen encoder, on which something small is fitted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewtokens.cli.command import Mode
from fewtokens.cli.errors import check_exists, refuse
from fewtokens.cli.eval.views import LabeledOptions, LoadOptions, ViewOptions, clip_data, make_views, tell_scores
from fewtokens.cli.options import (
    ENCODER,
    INPUT,
    EncoderOptions,
    JsonOption,
    MethodOptions,
    RunOptions,
    SeedOption,
)
from fewtokens.cli.pipelines import make_pipeline
from fewtokens.cli.progress import progress

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ProbeOptions(LoadOptions, ViewOptions, MethodOptions):
    """Everything that the probes share beside the data."""

    encoder: Annotated[
        str,
        typer.Option(
            "--encoder",
            help="patches (no weights), a folder (also a trained network's), or a hub id.",
            rich_help_panel=ENCODER,
        ),
    ] = "patches"
    feature: Annotated[
        str, typer.Option("--feature", help="mean (over the tokens) or class.", rich_help_panel=ENCODER)
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
        "test set", lambda values: values["validation"] is not None, ("share",), "has no meaning beside --val"
    ),
)  # fmt: skip


def run_probe(
    context: typer.Context, task: str, labeled: LabeledOptions, options: ProbeOptions,
    fit: Callable[..., dict[str, Any]], settings: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Encodes both sets and prints what `fit` makes of (features, labels, test features, test labels)."""
    check_exists(labeled.data, labeled.validation)
    from fewtokens import networks as models
    from fewtokens.encoders import pick_device
    from fewtokens.evaluation.probes import features_of
    from fewtokens.train.classify import find_data

    ours = models.is_saved(options.encoder)
    if ours:
        refuse(context, ("feature",), "is for encoders; a trained network pools as it was trained to")
        refuse(context, ("spec", "keep"), "goes with an encoder; a trained network reduces as it was trained to")
    views = make_views(options, models.read_meta(options.encoder).get("trained", {}) if ours else {})
    listings = find_data(
        labeled.data, validation=labeled.validation, share=options.share, root=labeled.root, seed=options.seed
    )
    if listings[0].multi_label:
        raise ValueError("probes are for one class an item; for several, train a network and take classify")
    features = _features(options, ours)
    sets = []
    broken: list[str] = []
    for title, listing in zip(("training items", "test items"), listings, strict=True):
        items = clip_data(listing, views)
        with progress(title, len(items)) as advance:
            x, y, bad = features_of(
                features, items, device=pick_device(options.device), batch=options.batch, workers=options.workers,
                progress=advance,
            )  # fmt: skip
        sets += [x, y]
        broken += bad
    scores = fit(*sets) | {"items": len(sets[3]), "training_items": len(sets[1])}
    more = {"spec": options.spec, "feature": "its own" if ours else options.feature, "seed": options.seed}
    more |= settings or {}
    tell_scores(task, options.encoder, views, more, scores, broken, options.as_json)


def _features(options: ProbeOptions, ours: bool) -> Callable[[Tensor], Tensor]:
    """Clips [B,T,3,H,W] to features [B,C]."""
    from fewtokens import networks as models
    from fewtokens.encoders import pick_device

    if ours:
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
