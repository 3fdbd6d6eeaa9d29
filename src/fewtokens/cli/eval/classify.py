"""`fewtokens eval classify`: scores a trained classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fewtokens.cli.command import verb
from fewtokens.cli.errors import check_exists
from fewtokens.cli.eval.views import LabeledOptions, LoadOptions, ViewOptions, clip_data, make_views, print_scores
from fewtokens.cli.options import PROTOCOL, JsonOption
from fewtokens.cli.progress import progress

_NOT_TRAINED = "no trained network in this folder; fewtokens train classify writes one to OUT/model"


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
            "--average", help="What is averaged over the views: logits or probabilities.", rich_help_panel=PROTOCOL
        ),
    ] = "logits",
    as_json: JsonOption = False,
) -> None:
    """Score a trained classifier: top-1 and top-5 accuracy, or mAP for items with several classes.

    Predictions are averaged over clips x crops views of each item. The test set is --val if given; else the folder val,
    validation or test in --data; else the part of --data that training held out; else all of --data.
    """
    check_exists(labeled.data, labeled.validation)
    check_exists(Path(model), problem=_NOT_TRAINED)
    from fewtokens import networks as models
    from fewtokens.data import read_listing
    from fewtokens.encoders import pick_device
    from fewtokens.evaluation.classify import classification_scores, predict
    from fewtokens.train.classify import as_labeled, split_folders

    if not models.is_saved(model):
        raise ValueError(f"{model}: {_NOT_TRAINED}")
    meta = models.read_meta(model)
    trained = meta.get("trained", {})
    views = make_views(view, trained)
    network = models.load(model).to(pick_device(load.device))
    if "labels" not in meta:
        raise ValueError(f"{model}: config.json contains no labels; train it with fewtokens train classify")
    training, test = split_folders(labeled.data, labeled.validation)
    for name in ("val", "validation", "test"):  # without a folder "train"
        if test is None and (labeled.data / name).is_dir():
            test = labeled.data / name
    listing = read_listing(test or training, root=labeled.root, classes=meta["labels"])
    listing = as_labeled(listing, bool(meta.get("multi_label")))
    if test is None and trained.get("held_back"):
        # Training used the other part of the same split.
        listing = listing.split(trained["held_back"], trained["seed"])[1]
    items = clip_data(listing, views)
    loss = "sigmoid" if meta.get("multi_label") else trained.get("loss", "softmax")
    with progress("scoring", len(items)) as advance:
        scores, targets, broken = predict(
            network, items, batch=load.batch, workers=load.workers, average=average, loss=loss, progress=advance
        )
    results: dict[str, Any] = classification_scores(scores, targets) | {"items": len(scores)}
    print_scores("classify", model, views, {}, results, broken, as_json)
