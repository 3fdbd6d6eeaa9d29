"""`fewtokens eval classify`: how often a trained classifier is right."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fewtokens.cli.command import verb
from fewtokens.cli.errors import check_exists
from fewtokens.cli.eval.views import LabeledOptions, LoadOptions, ViewOptions, clip_data, make_views, tell_scores
from fewtokens.cli.options import PROTOCOL, JsonOption
from fewtokens.cli.progress import progress


@verb(
    "fewtokens eval classify run/model --data photos/",
    "fewtokens eval classify run/model --data videos/ --clips 4 --crops 3",
)
def classify(
    model: Annotated[str, typer.Argument(help="Folder of a trained network.")],
    labeled: LabeledOptions,
    view: ViewOptions,
    load: LoadOptions,
    average: Annotated[
        str,
        typer.Option(
            "--average", help="What of the views is averaged: logits or probabilities.", rich_help_panel=PROTOCOL
        ),
    ] = "logits",
    as_json: JsonOption = False,
) -> None:
    """Top-1 and top-5 accuracy, or mAP for items of several classes, over clips x crops views.

    Tested on --val; or, of --data, on the folder val, or on what training held out, or on all of it.
    """
    check_exists(labeled.data, labeled.validation)
    from fewtokens import networks as models
    from fewtokens.data import read_listing
    from fewtokens.encoders import pick_device
    from fewtokens.evaluation.classify import predict, scores_of

    if not models.is_saved(model):
        raise ValueError(f"{model}: no trained network; fewtokens train classify writes one into OUT/model")
    meta = models.read_meta(model)
    trained = meta.get("trained", {})
    views = make_views(view, trained)
    network = models.load(model).to(pick_device(load.device))
    if "labels" not in meta:
        raise ValueError(f"{model}: its config.json names no labels; it was not trained by fewtokens train")
    source = labeled.validation or labeled.data
    for name in ("val", "validation", "test"):
        if labeled.validation is None and (labeled.data / name).is_dir():
            source = labeled.data / name
            break
    listing = read_listing(source, root=labeled.root, classes=meta["labels"])
    if source == labeled.data and trained.get("held_back"):
        # It was trained on a part of such data; on the rest it is tested.
        listing = listing.split(trained["held_back"], trained["seed"])[1]
    items = clip_data(listing, views)
    loss = "sigmoid" if meta.get("multi_label") else trained.get("loss", "softmax")
    with progress("scoring", len(items)) as advance:
        scores, targets, broken = predict(
            network, items, batch=load.batch, workers=load.workers, average=average, loss=loss, progress=advance
        )
    numbers: dict[str, Any] = scores_of(scores, targets) | {"items": len(scores)}
    tell_scores("classify", model, views, {}, numbers, broken, as_json)
