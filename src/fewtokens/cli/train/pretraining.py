"""`fewtokens train tobo|mae|siam-mae|rsp|crop-mae`: an encoder from videos without labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.command import Verb
from fewtokens.cli.console import log, out
from fewtokens.cli.errors import check_exists
from fewtokens.cli.options import INPUT, TRAINING, RootOption
from fewtokens.cli.tables import print_json, table
from fewtokens.cli.train.runs import (
    TrainOptions,
    WorkersOption,
    run_values,
    tell_run,
    tell_some,
    training_progress,
)

_SHOWN = ("loss", "tobo", "siam", "mae", "rsp", "kl")
FootageArgument = Annotated[
    Path,
    typer.Argument(help="A folder of videos, of .npy frames, of folders of pictures, or of tars; a video; a list."),
]


@dataclasses.dataclass(frozen=True)
class _Options(TrainOptions):
    """What is particular to pre-training."""

    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="VERB_tiny (default), or VERB_vit_s16_k400 (b16, l16) as published.",
            rich_help_panel=TRAINING,
        ),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option("--steps", help="Optimizer steps, instead of --epochs.", rich_help_panel=TRAINING),
    ] = None
    root: RootOption = None
    size: Annotated[int | None, typer.Option("--size", help="Side of the crops, in pixels.", rich_help_panel=INPUT)] = (
        None
    )
    workers: WorkersOption = None


def _verb(name: str, what: str) -> Verb:
    objective = name.replace("-", "_")

    def train(data: FootageArgument, options: _Options) -> None:
        check_exists(data)
        if options.steps and options.epochs:
            raise ValueError("give --steps or --epochs, not both")
        flags = options.changes(steps=options.steps, size=options.size, workers=options.workers)
        preset = options.preset or f"{objective}_tiny"
        recipe = _recipe(objective, preset, options.settings or [], flags, options.device)
        _train(data, options.root, recipe, options)

    text = f"""{what}

    The encoder lies in OUT/model, for every --encoder; index.html shows the run. The same command resumes a stopped
    run, more --steps train it longer. With torchrun or accelerate launch (-m fewtokens train {name} ...) it runs on
    several processes or GPUs."""
    examples = (
        f"fewtokens train {name} videos/ --out run",
        f"fewtokens train {name} k400/train --preset {objective}_vit_s16_k400 --out run",
        f"fewtokens train {name} frames/ --size 64 --set depth=6 --out small --dry-run",
    )
    return Verb(train, examples, help=text)


tobo = _verb("tobo", "Token Bottleneck: squeeze a frame into one token, rebuild a later one from it and a few patches.")
mae = _verb("mae", "Masked autoencoder: rebuild a frame from a quarter of its patches.")
siam_mae = _verb("siam-mae", "SiamMAE: rebuild a later frame from a few patches and all of an earlier one.")
rsp = _verb("rsp", "RSP: draw a later frame from an earlier one and a latent.")
crop_mae = _verb("crop-mae", "CropMAE: rebuild a crop of a frame from a few patches and the rest of the frame.")


def _recipe(objective: str, preset: str, texts: list[str], flags: dict[str, Any], device: str) -> Any:
    import torch

    from fewtokens.train.pretraining_presets import accepted_settings, make_pretraining, preset_names
    from fewtokens.train.settings import parse_setting

    if not preset.startswith(f"{objective}_"):
        mine = ", ".join(name for name in preset_names() if name.startswith(f"{objective}_"))
        raise ValueError(f"--preset {preset} is not one of {objective}: {mine}")
    known = accepted_settings(objective)
    changes = dict(parse_setting(text, known) for text in texts)
    changes |= {name: value for name, value in flags.items() if value is not None}
    recipe = make_pretraining(preset, **changes)
    if recipe.precision == "fp16" and (device == "cpu" or not torch.cuda.is_available()):
        if "precision" in changes:
            raise ValueError("fp16 needs a GPU; on a CPU take --set precision=bf16 or precision=no")
        log.print("no GPU: float32 instead of the preset's fp16", style="dim")
        recipe = make_pretraining(preset, **changes, precision="no")
    return recipe


def _train(data: Path, root: Path | None, recipe: Any, options: TrainOptions) -> None:
    from accelerate import PartialState

    from fewtokens.data.footage import find_footage
    from fewtokens.train.pretraining import build_pretraining, pretrain

    found = find_footage(data, root=root)
    main = PartialState(cpu=options.device == "cpu").is_main_process
    if main:
        log.print(f"{len(found.items)} videos to train on", style="dim")
        tell_some("named and not there", found.missing)
        tell_some("left out", found.left_out)
    model = build_pretraining(recipe)
    total = recipe.total(len(found.items) * recipe.visits)
    if options.dry_run:
        if main:
            _show(recipe, model, total, options.as_json)
        return
    folder = options.folder
    with training_progress(f"training {recipe.objective}", total, _SHOWN, main) as step:
        report = pretrain(
            found.items, recipe, folder, model=model, resume=not options.fresh, progress=step, device=options.device
        )
    if not main:
        return
    if options.as_json:
        print_json(run_values(folder, report) | {"missing": list(found.missing)})
        return
    tell_run(report, table("Fixed batch", [{"loss": name, "value": value} for name, value in report.scores.items()]))
    if report.broken:
        single = sum("no pair" in line for line in report.broken)
        rest = f", {single} of them for want of a second frame" if single else ""
        log.print(f"[yellow]{len(report.broken)} videos were skipped[/yellow]{rest}; see {folder / 'broken.txt'}")
    out.print(f"[bold]Encoder[/bold]  {escape(str(folder / 'model'))}", highlight=False)
    out.print(f"[bold]Page[/bold]     {escape(str(folder / 'index.html'))}", highlight=False)


def _show(recipe: Any, model: Any, total: int, as_json: bool) -> None:
    values = dataclasses.asdict(recipe)
    note, network = values.pop("note"), dataclasses.asdict(model.config)
    del values["network"]
    parts = {part: sum(p.numel() for p in getattr(model, part).parameters() if p.requires_grad)
             for part in ("encoder", "decoder")}  # fmt: skip
    if as_json:
        print_json({"parameters": parts, "steps": total, "settings": values, "network": network, "note": note})
        return
    rows = [{"setting": name, "value": str(value)} for name, value in {**values, **network}.items()]
    out.print(table("", rows))
    numbers = ", ".join(f"{part} {count / 1e6:.2f} M" for part, count in parts.items())
    out.print(f"{total} steps; parameters that learn: {numbers}", highlight=False)
    out.print(escape(note), style="dim")
