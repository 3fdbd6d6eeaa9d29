"""`fewtokens train classify`: a classifier of one's own images or videos."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.command import Mode, verb
from fewtokens.cli.console import log, out
from fewtokens.cli.errors import check_exists
from fewtokens.cli.options import INPUT, MODEL, TRAINING, RootOption
from fewtokens.cli.tables import print_json, table
from fewtokens.cli.train.runs import (
    TrainOptions,
    WorkersOption,
    run_values,
    tell_run,
    tell_some,
    training_progress,
)
from fewtokens.core.keys import heading

_SHOWN = ("loss", "top1", "map")


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """What to train and test on, and how it is read."""

    data: Annotated[
        Path,
        typer.Option("--data", help="A folder with a folder for each class, a list, or tars.", rich_help_panel=INPUT),
    ]
    validation: Annotated[Path | None, typer.Option("--val", help="Test set, like --data.", rich_help_panel=INPUT)] = (
        None
    )
    share: Annotated[
        float,
        typer.Option(
            "--val-share",
            help="Fraction of each class held out for testing if --val is not given.",
            rich_help_panel=INPUT,
        ),
    ] = 0.1
    root: RootOption = None
    size: Annotated[int | None, typer.Option("--size", help="Side of the crops, in pixels.", rich_help_panel=INPUT)] = (
        None
    )
    frames: Annotated[int | None, typer.Option("--frames", help="Frames of a clip.", rich_help_panel=INPUT)] = None
    workers: WorkersOption = None


@verb(
    "fewtokens train classify tokenlearner_vit_nano8_8at2 --data photos/ --out run --size 64 --epochs 30",
    "fewtokens train classify tokenlearner_vivit_l16_8at18 --data k400/train.csv --val k400/val.csv --preset kinetics "
    "--init vit-large --out run",
    modes=(
        Mode("test set", lambda values: values["validation"] is not None, ("share",), "has no meaning beside --val"),
    ),
)
def classify(
    model: Annotated[str, typer.Argument(help="A name (see fewtokens models), or the folder of a saved network.")],
    files: DataOptions,
    options: TrainOptions,
    preset: Annotated[
        str,
        typer.Option(
            "--preset", help="small, imagenet_finetune, kinetics, charades, avid, ...", rich_help_panel=TRAINING
        ),
    ] = "small",
    init: Annotated[
        str | None,
        typer.Option("--init", help="An image ViT, or a pre-trained folder, to start from.", rich_help_panel=MODEL),
    ] = None,
) -> None:
    """Train a classifier on your images or videos; the same command resumes a stopped run.

    More --epochs train a run longer. The settings are those of the preset, changed by --set and the options. With
    torchrun or accelerate launch (-m fewtokens train classify ...) it runs on several processes or GPUs.
    """
    check_exists(files.data, files.validation)
    import torch
    from accelerate import PartialState

    from fewtokens import networks as models
    from fewtokens.train.classify import find_data, holds_out_data, prepare, train_classifier
    from fewtokens.train.inputs import folder_input
    from fewtokens.train.settings import make_recipe, parse_setting

    changes: dict[str, Any] = dict(parse_setting(text) for text in options.settings or ())
    changes |= options.changes(size=files.size, frames=files.frames, workers=files.workers)
    recipe = make_recipe(preset, **changes)
    if not models.is_saved(model):
        models.preset(model)  # a wrong name is reported before the data is looked through
    training, test = find_data(
        files.data, validation=files.validation, share=files.share, root=files.root, seed=recipe.seed
    )
    main = PartialState(cpu=options.device == "cpu").is_main_process
    if main:
        _tell_data(training, test)
    torch.manual_seed(recipe.seed)
    network = prepare(model, training, recipe, start=init)
    total = recipe.total(len(training.items))
    if options.dry_run:
        if main:
            _tell_settings(model, network, recipe, total, options.as_json)
        return
    folder = options.folder
    with training_progress(f"training {model}", total, _SHOWN, main) as step:
        report = train_classifier(
            network,
            training,
            test,
            recipe,
            folder,
            inputs={"network": folder_input(model), "--init": folder_input(init or "none")},
            resume=not options.fresh,
            progress=step,
            device=options.device,
            held_out=files.share if holds_out_data(files.data, files.validation) else None,
        )
    if not main:
        return
    if options.as_json:
        print_json(run_values(folder, report) | {"missing": list(training.missing)})
        return
    tell_run(report, table("Test", [{"score": heading(name), "%": value} for name, value in report.scores.items()]))
    if report.broken:
        out.print(f"[yellow]{len(report.broken)} files could not be read[/yellow], listed in {folder / 'broken.txt'}")
    if report.enlarged:
        out.print(f"{report.enlarged} pictures are smaller than the crop and were scaled up")
    out.print(f"[bold]Network[/bold]  {escape(str(folder / 'model'))}", highlight=False)
    out.print(f"[bold]Curves[/bold]   {escape(str(folder / 'curves.png'))}, metrics.jsonl beside it", highlight=False)


def _tell_settings(model: str, network: Any, recipe: Any, total: int, as_json: bool) -> None:
    values = dataclasses.asdict(recipe)
    note = values.pop("note")
    parameters = sum(parameter.numel() for parameter in network.parameters())
    if as_json:
        print_json({"model": model, "parameters": parameters, "steps": total, "settings": values, "note": note})
        return
    out.print(table("", [{"setting": name, "value": str(value)} for name, value in values.items()]))
    out.print(f"{escape(model)}: {parameters / 1e6:.2f} M parameters, {total} steps", highlight=False)
    if note:
        out.print(escape(note), style="dim")


def _tell_data(training: Any, test: Any) -> None:
    log.print(
        f"{len(training.items)} to train on, {len(test.items)} to test on, {len(training.classes)} classes", style="dim"
    )
    tell_some("named and not there", training.missing + test.missing)
    tell_some("left out", training.left_out)
