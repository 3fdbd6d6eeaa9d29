"""`fewtokens train`: train a network on one's own images or videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.common import (
    JsonOption,
    log,
    out,
    print_json,
    progress,
    run_values,
    table,
    tell_run,
    verb,
    with_others,
)

_OTHERS = {
    "fewtokens.cli.train_llm": ("video-llm", "token-dynamics"),
    "fewtokens.cli.train_tobo": ("tobo", "mae", "siam-mae", "rsp", "crop-mae", "frames"),
}

app = typer.Typer(cls=with_others("network", _OTHERS), add_completion=False)


@app.callback()
def _several() -> None:
    """Train a network."""


@app.command(
    "network",
    epilog="Examples:  [bold]fewtokens train tokenlearner_vit_nano8_8at2 --data photos/ --out run --size 64 "
    "--epochs 30[/bold]   |   [bold]torchrun --nproc-per-node 8 -m fewtokens train tokenlearner_vivit_l16_8at18 "
    "--data k400/train.csv --val k400/val.csv --preset kinetics --init vit-large --out run[/bold]   |   "
    + "   |   ".join(f"[bold]fewtokens train {name} --help[/bold]" for names in _OTHERS.values() for name in names),
)
@verb
def train(
    model: Annotated[str, typer.Argument(help="A name (see fewtokens models), or the folder of a saved network.")],
    data: Annotated[Path, typer.Option("--data", help="A folder with a folder for each class, a list, or tars.")],
    folder: Annotated[Path, typer.Option("--out", help="The run's folder; a run that is there continues.")],
    validation: Annotated[Path | None, typer.Option("--val", help="What to test on, like --data.")] = None,
    share: Annotated[
        float, typer.Option("--val-share", help="Held back of every class where there is no --val.")
    ] = 0.1,
    root: Annotated[Path | None, typer.Option("--root", help="Where the files of a list lie.")] = None,
    preset: Annotated[str, typer.Option("--preset", help="small, imagenet_finetune, kinetics, charades, avid, ...")] = (
        "small"
    ),
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any setting; --dry-run lists them.")
    ] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="Passes over the data.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Samples of one step, over all processes.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate.")] = None,
    size: Annotated[int | None, typer.Option("--size", help="Side of the crops, in pixels.")] = None,
    frames: Annotated[int | None, typer.Option("--frames", help="Frames of a clip.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Processes that read data.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of everything drawn.")] = None,
    init: Annotated[
        str | None, typer.Option("--init", help="An image ViT, or a pre-trained folder, to begin with.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over in a folder that holds a run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show settings and data, and train nothing.")] = False,
    device: Annotated[str | None, typer.Option("--device", help="cpu, to stay there although there is a GPU.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a network on your images or videos; the same command resumes a stopped run.

    More --epochs train a run longer. The settings are those of the preset, changed by --set and the options. With
    torchrun or accelerate launch it runs on several processes or GPUs.
    """
    from accelerate import PartialState

    from fewtokens import networks as models
    from fewtokens.train.classify import find_data, held_back, prepare, train_classifier
    from fewtokens.train.inputs import folder_input
    from fewtokens.train.settings import make_recipe, parse_setting

    changes: dict[str, Any] = dict(parse_setting(text) for text in settings or ())
    flags = {
        "epochs": epochs,
        "batch": batch,
        "lr": lr,
        "size": size,
        "frames": frames,
        "workers": workers,
        "seed": seed,
    }
    changes |= {name: value for name, value in flags.items() if value is not None}
    recipe = make_recipe(preset, **changes)
    if not models.is_saved(model):
        models.preset(model)  # a wrong name is told before the data is looked through
    training, test = find_data(data, validation=validation, share=share, root=root, seed=recipe.seed)
    main = PartialState(cpu=device == "cpu").is_main_process
    if main:
        _tell(training, test)
    import torch

    torch.manual_seed(recipe.seed)
    network = prepare(model, training, recipe, start=init)
    total = recipe.total(len(training.items))
    if dry_run:
        if main:
            _show(model, network, recipe, total, as_json)
        return
    with progress(f"training {model}", total) as advance:

        def step(done: int, in_all: int, numbers: dict[str, float]) -> None:
            shown = "  ".join(f"{name} {value:.3g}" for name, value in numbers.items() if name in _SHOWN)
            advance(done, in_all, f"step {done}  {shown}")

        report = train_classifier(
            network,
            training,
            test,
            recipe,
            folder,
            inputs={"network": folder_input(model), "--init": folder_input(init or "none")},
            resume=not fresh,
            progress=step if main else None,
            device=device,
            held_back=share if held_back(data, validation) else None,
        )
    if not main:
        return
    if as_json:
        print_json(run_values(folder, report) | {"missing": list(training.missing)})
        return
    tell_run(report, table("Test", [{"score": name, "%": value} for name, value in report.scores.items()]))
    if report.broken:
        out.print(f"[yellow]{len(report.broken)} files could not be read[/yellow], listed in {folder / 'broken.txt'}")
    if report.enlarged:
        out.print(f"{report.enlarged} pictures are smaller than the crop and were scaled up")
    out.print(f"[bold]Network[/bold]  {escape(str(folder / 'model'))}", highlight=False)
    out.print(f"[bold]Curves[/bold]   {escape(str(folder / 'curves.png'))}, metrics.jsonl beside it", highlight=False)


def _show(model: str, network: Any, recipe: Any, total: int, as_json: bool) -> None:
    import dataclasses

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


_SHOWN = ("loss", "top1", "mAP")


def _tell(training: Any, test: Any) -> None:
    log.print(
        f"{len(training.items)} to train on, {len(test.items)} to test on, {len(training.classes)} classes", style="dim"
    )
    for what, lines in (("named and not there", training.missing + test.missing), ("left out", training.left_out)):
        if lines:
            some = ", ".join(lines[:3]) + (" ..." if len(lines) > 3 else "")
            log.print(f"[yellow]{len(lines)} {what}:[/yellow] {escape(some)}", soft_wrap=True)
