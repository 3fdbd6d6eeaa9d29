"""`fewtokens eval`: scores of trained networks and of frozen encoders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.common import (
    BatchOption,
    DeviceOption,
    JsonOption,
    SeedOption,
    log,
    make_pipeline,
    out,
    print_json,
    progress,
    table,
    unused,
    verb,
    with_others,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_OTHERS = {
    "fewtokens.cli.eval_llm": ("videoqa", "qa"),
    "fewtokens.cli.eval_dense": ("davis", "jhmdb", "vip"),
    "fewtokens.cli.eval_bc": ("bc",),
}

app = typer.Typer(cls=with_others("scores", _OTHERS), add_completion=False)

TASKS = ("classify", "fewshot", "linear", "knn")


@app.callback()
def _several() -> None:
    """Score a network."""


@app.command(
    "scores",
    epilog="Examples:  [bold]fewtokens eval classify run/model --data photos/ --clips 4 --crops 3[/bold]   |   "
    '[bold]fewtokens eval fewshot facebook/dinov2-small --data photos/ --with "tome(keep=0.25)"[/bold]   |   '
    + "   |   ".join(f"[bold]fewtokens eval {name} --help[/bold]" for names in _OTHERS.values() for name in names),
)
@verb
def evaluate(
    context: typer.Context,
    task: Annotated[str, typer.Argument(help="classify, fewshot, linear or knn.")],
    model: Annotated[str, typer.Argument(help="A trained network's folder; for probes also any encoder.")],
    data: Annotated[Path, typer.Option("--data", help="A folder with a folder for each class, a list, or tars.")],
    validation: Annotated[Path | None, typer.Option("--val", help="What to test on, like --data.")] = None,
    share: Annotated[
        float, typer.Option("--val-share", help="Tested on, of each class, where there is no --val.")
    ] = 0.2,
    root: Annotated[Path | None, typer.Option("--root", help="Where the files of a list lie.")] = None,
    size: Annotated[
        int | None, typer.Option("--size", help="Side of the crops; what it was trained with, else 224.")
    ] = None,
    resize: Annotated[int, typer.Option("--resize", help="Short side before the crop; 0 is the size.")] = 0,
    frames: Annotated[int | None, typer.Option("--frames", help="Frames of a clip.")] = None,
    stride: Annotated[int | None, typer.Option("--stride", help="Source frames from one to the next.")] = None,
    fps: Annotated[float | None, typer.Option("--fps", help="Frames each second, instead of --stride.")] = None,
    clips: Annotated[int, typer.Option("--clips", help="Clips of each video.")] = 1,
    crops: Annotated[int, typer.Option("--crops", help="Crops of each clip.")] = 1,
    average: Annotated[
        str, typer.Option("--average", help="What of the views is averaged: logits or probabilities.")
    ] = ("logits"),
    spec: Annotated[str, typer.Option("--with", metavar="SPEC", help="Methods between encoder and probe.")] = "",
    pool: Annotated[str, typer.Option("--pool", help="Of an encoder: mean (over the tokens) or class.")] = "mean",
    shots: Annotated[int, typer.Option("--shots", help="Examples of each class, for fewshot.")] = 5,
    k: Annotated[int, typer.Option("--k", help="Neighbours, for knn.")] = 20,
    batch: BatchOption = 64,
    workers: Annotated[int, typer.Option("--workers", help="Processes that read data.")] = 0,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Score a trained network, or probe a frozen encoder.

    classify: top-1 and top-5, or mAP where items have several classes, over clips x crops views. fewshot: least
    squares on 5 examples of each class; linear: logistic regression; knn: weighted vote; all three on frozen
    features of a trained network or of any encoder.
    """
    from fewtokens import networks as models
    from fewtokens.encoders import pick_device
    from fewtokens.train.classify import find_data

    if task not in TASKS:
        raise ValueError(f"the task must be one of {', '.join(TASKS)}, got {task!r}")
    _check_options(context, task, validation)
    if k < 1 or shots < 1:
        raise ValueError(f"--k and --shots must be at least 1, got {k} and {shots}")
    where = pick_device(device)
    ours = models.is_saved(model)
    if task == "classify" and not ours:
        raise ValueError(f"{model}: no trained network; fewtokens train writes one into OUT/model")
    if ours:
        unused(context, "is for encoders; a trained network pools as it was trained to", "pool")
    if ours and spec:
        raise ValueError("--with goes with an encoder; a trained network reduces as it was trained to")
    trained = models.meta(model).get("trained", {}) if ours else {}
    if stride is not None and fps is not None:
        raise ValueError("say --stride or --fps, not both")
    view: dict[str, Any] = {"frames": frames or trained.get("frames", 1)}
    if fps is not None or (stride is None and trained.get("fps")):
        view["fps"] = fps or trained["fps"]
    else:
        view["stride"] = stride or trained.get("stride", 1)
    side = size or trained.get("size", 224)
    transform: dict[str, Any] = {
        "size": side,
        "resize": resize or (trained.get("resize", 0) if side == trained.get("size") else 0),
    }
    protocol = {"task": task, "model": model, **transform, **view, "clips": clips, "crops": crops}
    if task == "classify":
        row = _classify(model, data, validation, root, transform, view, clips, crops, average, batch, workers, where)
    else:
        training, test = find_data(data, validation=validation, share=share, root=root, seed=seed)
        features = _features(model, ours, spec, pool, seed, device, batch)
        row = _probe(
            task, features, training, test, transform, view, clips, crops, shots, k, batch, workers, where, seed
        )
        protocol |= {"with": spec, "pool": pool if not ours else "its own", "seed": seed}
    broken = row.pop("broken")
    if as_json:
        print_json({"protocol": protocol, "broken": broken, **row})
        return
    out.print(f"[bold]{task}[/bold]  {escape(model)}", highlight=False)
    out.print(table("", [{"score": name, "value": value} for name, value in row.items()]))
    out.print("  ".join(f"{name}={value}" for name, value in list(protocol.items())[2:]), style="dim", highlight=False)
    if broken:
        log.print(f"[yellow]{len(broken)} files could not be read[/yellow]; the first: {escape(broken[0])}")


def _check_options(context: typer.Context, task: str, validation: Path | None) -> None:
    """Raises a ValueError for options that mean nothing for this task."""
    if task == "classify":
        unused(context, "have a meaning for probes only, not for classify", "pool", "shots", "k", "share", "seed")
    else:
        unused(context, "has a meaning for classify only", "average")
    if task != "fewshot":
        unused(context, "has a meaning for fewshot only", "shots")
    if task != "knn":
        unused(context, "has a meaning for knn only", "k")
    if validation is not None:
        unused(context, "has no meaning beside --val", "share")


def _classify(
    model: str, data: Path, validation: Path | None, root: Path | None, transform: dict[str, Any],
    view: dict[str, Any], clips: int, crops: int, average: str, batch: int, workers: int, where: Any,
) -> dict[str, Any]:  # fmt: skip
    """What is under --val; or of --data the val folder, or the part that training held back, or all of it."""
    from fewtokens import networks as models
    from fewtokens.data import ClipData, Transform, View, read_listing
    from fewtokens.evaluation.classify import predict, scores_of

    network = models.load(model).to(where)
    said = models.meta(model)
    if "labels" not in said:
        raise ValueError(f"{model}: its config.json names no labels; it was not trained by fewtokens train")
    source = validation or data
    for name in ("val", "validation", "test"):
        if validation is None and (data / name).is_dir():
            source = data / name
            break
    listing = read_listing(source, root=root, classes=said["labels"])
    trained = said.get("trained", {})
    if source == data and trained.get("held_back"):
        # It was trained on a part of such data; on the rest it is tested.
        listing = listing.split(trained["held_back"], trained["seed"])[1]
    clip_data = ClipData(listing, Transform(**transform), View(**view, clips=clips, crops=crops), training=False)
    loss = "sigmoid" if said.get("multi_label") else trained.get("loss", "softmax")
    with progress("scoring", len(clip_data)) as advance:
        scores, targets, broken = predict(
            network, clip_data, batch=batch, workers=workers, average=average, loss=loss, progress=advance
        )
    return scores_of(scores, targets) | {"items": len(scores), "broken": broken}


def _features(
    model: str, ours: bool, spec: str, pool: str, seed: int, device: str, batch: int
) -> Callable[[Tensor], Tensor]:
    """Clips [B,T,3,H,W] to features [B,C]."""
    from fewtokens import networks as models
    from fewtokens.encoders import pick_device

    if ours:
        return models.load(model).to(pick_device(device)).features
    if pool not in ("mean", "class"):
        raise ValueError(f"pool must be mean or class, got {pool!r}")
    pipeline = make_pipeline(spec, None, seed, model, device, None, batch)

    def run(clips: Tensor) -> Tensor:
        tokens = pipeline(clips)
        if pool == "class":
            if tokens.prefix is None:
                raise ValueError(f"{model} has no class token; take --pool mean")
            return tokens.prefix.unflatten(1, (tokens.grid.T, -1))[:, :, 0].mean(1)
        weight = tokens.sizes[..., None] * tokens.mask[..., None]
        return (tokens.features.float() * weight).sum(1) / weight.sum(1)

    return run


def _probe(
    task: str, features: Callable[[Tensor], Tensor], training: Any, test: Any, transform: dict[str, Any],
    view: dict[str, Any], clips: int, crops: int, shots: int, k: int, batch: int, workers: int, where: Any, seed: int,
) -> dict[str, Any]:  # fmt: skip
    from fewtokens.data import ClipData, Transform, View
    from fewtokens.evaluation.probes import features_of, few_shot, linear_probe, nearest_neighbours

    if training.multi_label:
        raise ValueError("probes are for one class an item; for several, train a network and take classify")
    sets = []
    broken: list[str] = []
    for title, listing in (("training items", training), ("test items", test)):
        clip_data = ClipData(listing, Transform(**transform), View(**view, clips=clips, crops=crops), training=False)
        with progress(title, len(clip_data)) as advance:
            x, y, bad = features_of(features, clip_data, device=where, batch=batch, workers=workers, progress=advance)
        sets += [x, y]
        broken += bad
    if task == "fewshot":
        row: dict[str, Any] = {f"{shots}-shot top1": 100 * few_shot(*sets, shots=shots)}
    elif task == "linear":
        accuracy, penalty = linear_probe(*sets, seed=seed)
        row = {"linear top1": 100 * accuracy, "penalty": penalty}
    else:
        row = {f"{k}-NN top1": 100 * nearest_neighbours(*sets, k=k)}
    return row | {"items": len(sets[3]), "trained on": len(sets[1]), "broken": broken}
