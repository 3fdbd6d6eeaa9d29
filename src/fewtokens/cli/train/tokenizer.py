"""`fewtokens train tokenizer`: trains a tokenizer on unlabeled videos."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.command import Verb
from fewtokens.cli.console import log, out
from fewtokens.cli.errors import check_exists
from fewtokens.cli.options import INPUT, TRAINING, Check, RootOption, check_model, check_new_tokenizer, find_model
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

_SHOWN = ("loss", "pixel", "psnr", "usage")


@dataclasses.dataclass(frozen=True)
class _Options(TrainOptions):
    """Options of training a tokenizer."""

    tokenizer: Annotated[
        str,
        typer.Option(
            "--tokenizer",
            help="Preset (list: fewtokens tokenizers), or a spec: encoder | methods > decoder.",
            rich_help_panel=TRAINING,
        ),
        Check(check_new_tokenizer),
    ] = "vidtok_fsq_262144"
    published: Annotated[
        bool,
        typer.Option(
            "--published", help="Published size of the preset, not the small one for CPUs.", rich_help_panel=TRAINING
        ),
    ] = False
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            help="Trained tokenizer to start from; parts whose tensors differ in shape keep their random values.",
            rich_help_panel=TRAINING,
        ),
        Check(check_model, find_model),
    ] = None
    steps: StepsOption = None
    root: RootOption = None
    evaluation: Annotated[
        Path | None,
        typer.Option("--eval", help="Videos to score, as DATA. Default: the ones to train on.", rich_help_panel=INPUT),
    ] = None
    frames: Annotated[
        int | None,
        typer.Option("--frames", help="Frames of a clip. Default: those of the preset.", rich_help_panel=INPUT),
    ] = None
    size: CropOption = None
    workers: WorkersOption = None


def _train(data: FootageArgument, options: _Options) -> None:
    check_exists(data)
    if options.steps and options.epochs:
        raise ValueError("give --steps or --epochs, not both")
    import torch
    from accelerate import PartialState

    from fewtokens.data.footage import find_footage
    from fewtokens.tokenizers.load import load_tokenizer
    from fewtokens.train.inputs import folder_input
    from fewtokens.train.settings import parse_setting
    from fewtokens.train.tokenizer import train_tokenizer
    from fewtokens.train.tokenizer_recipe import accepted_settings, build_tokenizer, make_tokenizer_recipe

    changes = dict(parse_setting(text, accepted_settings()) for text in options.settings or [])
    changes |= options.changes(steps=options.steps, size=options.size, frames=options.frames, workers=options.workers)
    recipe = make_tokenizer_recipe(options.tokenizer, **{"tiny": not options.published, **changes})
    if recipe.precision == "fp16" and (options.device == "cpu" or not torch.cuda.is_available()):
        raise ValueError("fp16 requires a GPU; on a CPU use --set precision=bf16 or precision=no")
    footage = find_footage(data, root=options.root)
    held_out = () if options.evaluation is None else find_footage(options.evaluation).items
    main = PartialState(cpu=options.device == "cpu").is_main_process
    tokenizer = build_tokenizer(recipe)
    if options.init is not None:
        kept = tokenizer.start_from(load_tokenizer(options.init, device="cpu"))
        if main:
            log.print(f"{options.init}: {kept} of {len(tokenizer.state_dict())} tensors loaded", style="dim")
    if main:
        log.print(f"{len(footage.items)} videos to train on", style="dim")
        print_some("missing", footage.missing)
        print_some("skipped", footage.skipped)
    total = recipe.total(len(footage.items) * recipe.visits)
    if options.dry_run:
        if main:
            _print_settings(recipe, tokenizer, total, options.as_json)
        return
    folder = options.folder
    with training_progress("training a tokenizer", total, _SHOWN, main) as step:
        report = train_tokenizer(
            footage.items,
            recipe,
            folder,
            evaluation=held_out,
            tokenizer=tokenizer,
            initial=None if options.init is None else folder_input(options.init),
            resume=not options.fresh,
            progress=step,
            device=options.device,
        )
    if not main:
        return
    if options.as_json:
        print_json(run_values(folder, report) | {"missing": list(footage.missing)})
        return
    print_run(report, table("Fixed clips", [{"score": name, "value": value} for name, value in report.scores.items()]))
    out.print(f"[bold]Tokenizer[/bold]  {escape(str(folder / 'tokenizer'))}", highlight=False)
    out.print(f"[bold]Page[/bold]       {escape(str(folder / 'index.html'))}", highlight=False)


def _print_settings(recipe: Any, tokenizer: Any, total: int, as_json: bool) -> None:
    values = dataclasses.asdict(recipe)
    note = values.pop("note")
    layout = tokenizer.layout(recipe.frames, recipe.size, recipe.size)
    parts = {
        name: sum(p.numel() for p in getattr(tokenizer, name).parameters() if p.requires_grad)
        for name in ("pipeline", "decoder")
    }
    if as_json:
        print_json({
            "parameters": parts, "steps": total, "settings": values, "spec": tokenizer.spec, "tokens": layout.tokens,
            "bits": layout.bits, "note": note,
        })  # fmt: skip
        return
    out.print(table("", [{"setting": name, "value": str(value)} for name, value in values.items()]))
    counts = ", ".join(f"{part} {count / 1e6:.2f} M" for part, count in parts.items())
    out.print(escape(tokenizer.spec), highlight=False)
    tokens = "depends on the video" if layout.tokens is None else f"{layout.tokens} tokens, {layout.bits:.0f} bits"
    out.print(f"{total} steps; trainable parameters: {counts}; a clip: {tokens}", highlight=False)
    if note:
        out.print(escape(note), style="dim")


tokenizer = Verb(
    _train,
    (
        "fewtokens train tokenizer videos/ --tokenizer vidtok_fsq_262144 --out run",
        'fewtokens train tokenizer videos/ --tokenizer "tubelet(256, stride=(2, 8, 8)) | fsq > '
        'tubelet(stride=(2, 8, 8))" --out run',
        "fewtokens train tokenizer videos/ --eval held_out/ --set pixel=l2 --set precision=bf16 --out run --dry-run",
    ),
    help="""Train a tokenizer, which encodes videos to codes and decodes codes to videos.

    Writes the tokenizer to OUT/tokenizer, a folder for fewtokens encode, decode and eval reconstruction, and a page of
    the run, OUT/index.html. Rerun the same command to resume a stopped run; a larger --steps continues a finished one.
    --set rates=pipeline=0 trains only the decoder, and --init starts from a trained tokenizer, for example with another
    quantizer.""",
)
