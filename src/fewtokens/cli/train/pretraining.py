"""`fewtokens train tobo|mae|siam-mae|rsp|crop-mae`: pre-trains an encoder on unlabeled videos."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.command import Verb
from fewtokens.cli.console import log, out
from fewtokens.cli.errors import check_exists
from fewtokens.cli.options import TRAINING, RootOption
from fewtokens.cli.tables import print_json, table
from fewtokens.cli.train.runs import (
    CropOption,
    FootageArgument,
    StepsOption,
    TrainOptions,
    WorkersOption,
    print_run,
    print_some,
    run_values,
    training_progress,
)

_SHOWN = ("loss", "tobo", "siam", "mae", "rsp", "kl")


@dataclasses.dataclass(frozen=True)
class _Options(TrainOptions):
    """Options of pre-training."""

    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="Preset, such as tobo_tiny, or as published tobo_vit_s16_k400 (also b16, l16). Default: the tiny one.",
            rich_help_panel=TRAINING,
        ),
    ] = None
    steps: StepsOption = None
    root: RootOption = None
    size: CropOption = None
    workers: WorkersOption = None


def _verb(name: str, summary: str) -> Verb:
    objective = name.replace("-", "_")

    def train(data: FootageArgument, options: _Options) -> None:
        check_exists(data)
        if options.steps and options.epochs:
            raise ValueError("give --steps or --epochs, not both")
        flags = options.changes(steps=options.steps, size=options.size, workers=options.workers)
        preset = options.preset or f"{objective}_tiny"
        recipe = _recipe(objective, preset, options.settings or [], flags, options.device)
        _train(data, options.root, recipe, options)

    text = f"""{summary}

    Writes the encoder to OUT/model, a folder that --encoder accepts, and a page of the run, OUT/index.html. Rerun the
    same command to resume a stopped run; a larger --steps continues a finished one. For several processes or GPUs, use
    torchrun or accelerate launch with -m fewtokens train {name} ..."""
    examples = (
        f"fewtokens train {name} videos/ --out run",
        f"fewtokens train {name} k400/train --preset {objective}_vit_s16_k400 --out run",
        f"fewtokens train {name} frames/ --size 64 --set depth=6 --out small --dry-run",
    )
    return Verb(train, examples, help=text)


tobo = _verb(
    "tobo",
    "Pre-train an encoder with Token Bottleneck: compress a frame into one token, and reconstruct a later frame from "
    "it and a few patches.",
)
mae = _verb("mae", "Pre-train an encoder as a masked autoencoder: reconstruct a frame from a quarter of its patches.")
siam_mae = _verb(
    "siam-mae",
    "Pre-train an encoder with SiamMAE: reconstruct a later frame from a few of its patches and all of an earlier one.",
)
rsp = _verb("rsp", "Pre-train an encoder with RSP: predict a later frame from an earlier frame and a latent.")
crop_mae = _verb(
    "crop-mae",
    "Pre-train an encoder with CropMAE: reconstruct a crop of a frame from a few of its patches and a larger crop.",
)


def _recipe(objective: str, preset: str, texts: list[str], flags: dict[str, Any], device: str) -> Any:
    import torch

    from fewtokens.train.pretraining_presets import accepted_settings, make_pretraining, preset_names
    from fewtokens.train.settings import parse_setting

    if not preset.startswith(f"{objective}_"):
        names = ", ".join(name for name in preset_names() if name.startswith(f"{objective}_"))
        raise ValueError(f"--preset must be one of {names}, got {preset!r}")
    settings = accepted_settings(objective)
    changes = dict(parse_setting(text, settings) for text in texts)
    changes |= {name: value for name, value in flags.items() if value is not None}
    recipe = make_pretraining(preset, **changes)
    if recipe.precision == "fp16" and (device == "cpu" or not torch.cuda.is_available()):
        if "precision" in changes:
            raise ValueError("fp16 requires a GPU; on a CPU use --set precision=bf16 or precision=no")
        log.print("no GPU: using float32 instead of fp16", style="dim")
        recipe = make_pretraining(preset, **changes, precision="no")
    return recipe


def _train(data: Path, root: Path | None, recipe: Any, options: TrainOptions) -> None:
    from accelerate import PartialState

    from fewtokens.data.footage import find_footage
    from fewtokens.train.pretraining import build_pretraining, pretrain

    footage = find_footage(data, root=root)
    main = PartialState(cpu=options.device == "cpu").is_main_process
    if main:
        log.print(f"{len(footage.items)} videos to train on", style="dim")
        print_some("missing", footage.missing)
        print_some("skipped", footage.skipped)
    model = build_pretraining(recipe)
    total = recipe.total(len(footage.items) * recipe.visits)
    if options.dry_run:
        if main:
            _print_settings(recipe, model, total, options.as_json)
        return
    folder = options.folder
    with training_progress(f"training {recipe.objective}", total, _SHOWN, main) as step:
        report = pretrain(
            footage.items, recipe, folder, model=model, resume=not options.fresh, progress=step, device=options.device
        )
    if not main:
        return
    if options.as_json:
        print_json(run_values(folder, report) | {"missing": list(footage.missing)})
        return
    print_run(report, table("Fixed batch", [{"loss": name, "value": value} for name, value in report.scores.items()]))
    if report.broken:
        single = sum("a pair requires two frames" in line for line in report.broken)
        rest = f" ({single} with fewer than two frames)" if single else ""
        count = len(report.broken)
        skipped = f"{count} video was skipped" if count == 1 else f"{count} videos were skipped"
        log.print(f"[yellow]{skipped}[/yellow]{rest}; see {folder / 'broken.txt'}")
    out.print(f"[bold]Encoder[/bold]  {escape(str(folder / 'model'))}", highlight=False)
    out.print(f"[bold]Page[/bold]     {escape(str(folder / 'index.html'))}", highlight=False)


def _print_settings(recipe: Any, model: Any, total: int, as_json: bool) -> None:
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
    counts = ", ".join(f"{part} {count / 1e6:.2f} M" for part, count in parts.items())
    out.print(f"{total} steps; trainable parameters: {counts}", highlight=False)
    out.print(escape(note), style="dim")
