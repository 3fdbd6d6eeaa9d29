"""`fewtokens train classify`: trains a classifier on labeled images or videos."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.command import Mode, verb
from fewtokens.cli.console import log, out
from fewtokens.cli.errors import check_exists
from fewtokens.cli.options import INPUT, MODEL, TRAINING, Check, RootOption, check_network
from fewtokens.cli.tables import print_json, table
from fewtokens.cli.train.runs import (
    TrainOptions,
    WorkersOption,
    print_run,
    print_some,
    run_values,
    training_progress,
)
from fewtokens.core.keys import heading

_SHOWN = ("loss", "top1", "map")


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Training and test data, and how they are read."""

    data: Annotated[
        Path,
        typer.Option(
            "--data", help="Labeled data: a folder with one folder per class, a list, or tars.", rich_help_panel=INPUT
        ),
    ]
    validation: Annotated[
        Path | None, typer.Option("--val", help="Test set, in the format of --data.", rich_help_panel=INPUT)
    ] = None
    share: Annotated[
        float,
        typer.Option(
            "--val-share",
            help="Fraction of each class held out for testing if --val is not given.",
            rich_help_panel=INPUT,
        ),
    ] = 0.1
    root: RootOption = None
    size: Annotated[
        int | None,
        typer.Option(
            "--size", help="Side of the crops, in pixels. Default: that of the preset.", rich_help_panel=INPUT
        ),
    ] = None
    frames: Annotated[
        int | None,
        typer.Option("--frames", help="Frames per clip. Default: that of the preset.", rich_help_panel=INPUT),
    ] = None
    workers: WorkersOption = None


@verb(
    "fewtokens train classify tokenlearner_vit_nano8_8at2 --data photos/ --out run --size 64 --epochs 30",
    "fewtokens train classify tokenlearner_vivit_l16_8at18 --data k400/train.csv --val k400/val.csv --preset kinetics "
    "--init vit-large --out run",
    modes=(Mode("test set", lambda values: values["validation"] is not None, ("share",), "have no effect with --val"),),
)
def classify(
    model: Annotated[
        str,
        typer.Argument(help="Name of a network (see fewtokens models), or folder of a saved one."),
        Check(check_network),
    ],
    files: DataOptions,
    options: TrainOptions,
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            help="Preset of settings: small, imagenet_finetune, kinetics, charades, avid, ...",
            rich_help_panel=TRAINING,
        ),
    ] = "small",
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            help="Initial weights: an image ViT, or the folder of a pre-trained encoder.",
            rich_help_panel=MODEL,
        ),
    ] = None,
) -> None:
    """Train a classifier on your images or videos. Rerun the same command to resume a stopped run.

    A larger --epochs continues a finished run. Settings are those of the preset, overridden by options and --set. For
    several processes or GPUs, use torchrun or accelerate launch with -m fewtokens train classify ...
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
        models.preset(model)  # a folder of something else is reported before the data is searched
    training, test = find_data(
        files.data, validation=files.validation, share=files.share, root=files.root, seed=recipe.seed
    )
    main = PartialState(cpu=options.device == "cpu").is_main_process
    if main:
        _print_data(training, test)
    torch.manual_seed(recipe.seed)
    network = prepare(model, training, recipe, start=init)
    total = recipe.total(len(training.items))
    if options.dry_run:
        if main:
            _print_settings(model, network, recipe, total, options.as_json)
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
    print_run(report, table("Test", [{"score": heading(name), "%": value} for name, value in report.scores.items()]))
    if report.broken:
        out.print(f"[yellow]{len(report.broken)} files could not be read[/yellow], listed in {folder / 'broken.txt'}")
    if report.enlarged:
        out.print(f"{report.enlarged} images are smaller than the crop and were scaled up")
    out.print(f"[bold]Network[/bold]  {escape(str(folder / 'model'))}", highlight=False)
    out.print(f"[bold]Curves[/bold]   {escape(str(folder / 'curves.png'))}, metrics.jsonl", highlight=False)


def _print_settings(model: str, network: Any, recipe: Any, total: int, as_json: bool) -> None:
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


def _print_data(training: Any, test: Any) -> None:
    log.print(
        f"{len(training.items)} training items, {len(test.items)} test items, {len(training.classes)} classes",
        style="dim",
    )
    print_some("missing", training.missing + test.missing)
    print_some("skipped", training.skipped)
