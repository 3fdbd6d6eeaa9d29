"""`fewtokens train tobo|mae|siam-mae|rsp|crop-mae`: an encoder out of videos without labels; and `train frames`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.common import JsonOption, log, out, print_json, progress, run_values, table, tell_run, verb
from fewtokens.cli.train_llm import DeviceOption, DryOption, FreshOption, SeedOption, SetOption

app = typer.Typer(add_completion=False)

_TOLD = {
    "tobo": "Token Bottleneck: squeeze a frame into one token, rebuild a later one from it and a few patches.",
    "mae": "Masked autoencoder: rebuild a frame from a quarter of its patches.",
    "siam-mae": "SiamMAE: rebuild a later frame from a few patches and all of an earlier one.",
    "rsp": "RSP: draw a later frame from an earlier one and a latent.",
    "crop-mae": "CropMAE: rebuild a crop of a frame from a few patches and the rest of the frame.",
}
_DATA = "A folder of videos, of .npy frames, of folders of pictures, or of tars; a video; a list."
DataArgument = Annotated[Path, typer.Argument(help=_DATA)]
RootOption = Annotated[Path | None, typer.Option("--root", help="Where the files of a list lie.")]
OutOption = Annotated[Path, typer.Option("--out", help="The run's folder; a run that is there continues.")]
PresetOption = Annotated[
    str | None, typer.Option("--preset", help="VERB_tiny (the default); VERB_vit_s16_k400 (b16, l16), as published.")
]
StepsOption = Annotated[int | None, typer.Option("--steps", help="Optimizer steps, instead of epochs.")]
EpochsOption = Annotated[float | None, typer.Option("--epochs", help="Passes over the videos.")]
BatchOption = Annotated[int | None, typer.Option("--batch", help="Videos of one step, over all processes.")]
LrOption = Annotated[float | None, typer.Option("--lr", help="Learning rate; base_lr * batch / 256 if 0.")]
SizeOption = Annotated[int | None, typer.Option("--size", help="Side of the crops, in pixels.")]
WorkersOption = Annotated[int | None, typer.Option("--workers", help="Processes that read data.")]


def _add(name: str) -> None:
    objective = name.replace("-", "_")

    @app.command(
        name,
        help=f"{_TOLD[name]}\n\nThe encoder lies in OUT/model, for every --encoder; index.html shows the run. "
        "The same command resumes a stopped run, more --steps train it longer. With torchrun or accelerate launch it "
        "runs on several processes or GPUs.",
        epilog=f"Examples:  [bold]fewtokens train {name} videos/ --out run[/bold]   |   [bold]torchrun "
        f"--nproc-per-node 8 -m fewtokens train {name} k400/train --preset {objective}_vit_s16_k400 --out run[/bold]",
    )
    @verb
    def train(
        data: DataArgument,
        folder: OutOption,
        preset: PresetOption = None,
        root: RootOption = None,
        settings: SetOption = None,
        steps: StepsOption = None,
        epochs: EpochsOption = None,
        batch: BatchOption = None,
        lr: LrOption = None,
        size: SizeOption = None,
        workers: WorkersOption = None,
        seed: SeedOption = None,
        fresh: FreshOption = False,
        dry_run: DryOption = False,
        device: DeviceOption = None,
        as_json: JsonOption = False,
    ) -> None:
        flags = {"steps": steps, "epochs": epochs, "batch": batch, "lr": lr, "size": size, "workers": workers,
                 "seed": seed}  # fmt: skip
        if steps and epochs:
            raise ValueError("say --steps or --epochs, not both")
        recipe = _recipe(objective, preset or f"{objective}_tiny", settings or [], flags, device)
        _train(data, root, folder, recipe, fresh=fresh, dry_run=dry_run, device=device, as_json=as_json)


for _name in _TOLD:
    _add(_name)


@app.command(
    "frames",
    epilog="Examples:  [bold]fewtokens train frames videos/ --out frames/ --size 128[/bold]   |   "
    "[bold]fewtokens train frames k400/train.txt --root k400/train --out frames/ --size 256[/bold]",
)
@verb
def frames(
    data: DataArgument,
    folder: Annotated[Path, typer.Option("--out", help="Folder for a .npy of each video; those there stay.")],
    size: Annotated[int, typer.Option("--size", help="Short side of the frames, in pixels; 0 leaves them.")] = 128,
    root: RootOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Decode all of them again.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Decode videos ahead, so that pre-training reads bytes and does not wait for data."""
    from fewtokens.data.footage import find_footage
    from fewtokens.data.packed import pack_frames

    if size < 0:
        raise ValueError(f"--size must be at least 0, got {size}")
    found = find_footage(data, root=root)
    with progress("decoding", len(found.items)) as advance:
        packed = pack_frames(found.items, folder, short=size, fresh=fresh, progress=advance)
    if as_json:
        print_json({"out": str(folder), "videos": len(packed.files), "frames": packed.frames,
                    "broken": list(packed.broken), "missing": list(found.missing)})  # fmt: skip
        return
    out.print(f"{len(packed.files)} videos in {escape(str(folder))}, {packed.frames} frames written now")
    if packed.trusted:
        log.print(
            f"{packed.trusted} files were there of an older fewtokens, which did not note their videos; they stay"
        )
    _tell_of("could not be read", packed.broken)
    _tell_of("named and not there", found.missing)


def _recipe(objective: str, preset: str, texts: list[str], flags: dict[str, Any], device: str | None) -> Any:
    import torch

    from fewtokens.train.pretraining_presets import known_settings, make_pretraining, preset_names
    from fewtokens.train.settings import parse_setting

    if not preset.startswith(f"{objective}_"):
        mine = ", ".join(name for name in preset_names() if name.startswith(f"{objective}_"))
        raise ValueError(f"--preset {preset} is not one of {objective}: {mine}")
    known = known_settings(objective)
    changes = dict(parse_setting(text, known) for text in texts)
    changes |= {name: value for name, value in flags.items() if value is not None}
    recipe = make_pretraining(preset, **changes)
    if recipe.precision == "fp16" and (device == "cpu" or not torch.cuda.is_available()):
        if "precision" in changes:
            raise ValueError("fp16 needs a GPU; on a CPU take --set precision=bf16 or precision=no")
        log.print("no GPU: float32 instead of the preset's fp16", style="dim")
        recipe = make_pretraining(preset, **changes, precision="no")
    return recipe


def _train(
    data: Path, root: Path | None, folder: Path, recipe: Any, *, fresh: bool, dry_run: bool, device: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    from accelerate import PartialState

    from fewtokens.data.footage import find_footage
    from fewtokens.train.pretraining import build_pretraining, pretrain

    found = find_footage(data, root=root)
    main = PartialState(cpu=device == "cpu").is_main_process
    if main:
        log.print(f"{len(found.items)} videos to train on", style="dim")
        _tell_of("named and not there", found.missing)
        _tell_of("left out", found.left_out)
    model = build_pretraining(recipe)
    total = recipe.total(len(found.items) * recipe.visits)
    if dry_run:
        if main:
            _show(recipe, model, total, as_json)
        return
    paths = ("loss", "tobo", "siam", "mae", "rsp", "kl")
    with progress(f"training {recipe.objective}", total) as advance:

        def step(done: int, in_all: int, numbers: dict[str, float]) -> None:
            shown = "  ".join(f"{name} {value:.3g}" for name, value in numbers.items() if name in paths)
            advance(done, in_all, f"step {done}  {shown}")

        report = pretrain(
            found.items, recipe, folder, model=model, resume=not fresh, progress=step if main else None, device=device
        )
    if not main:
        return
    if as_json:
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
    import dataclasses

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
    told = ", ".join(f"{part} {count / 1e6:.2f} M" for part, count in parts.items())
    out.print(f"{total} steps; parameters that learn: {told}", highlight=False)
    out.print(escape(note), style="dim")


def _tell_of(what: str, lines: Any) -> None:
    if lines:
        some = ", ".join(lines[:3]) + (" ..." if len(lines) > 3 else "")
        log.print(f"[yellow]{len(lines)} {what}:[/yellow] {escape(some)}", soft_wrap=True)
