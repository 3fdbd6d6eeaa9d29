"""What `train video-llm` and `train token-dynamics` share: conversations, and the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.console import log, out
from fewtokens.cli.errors import check_exists
from fewtokens.cli.options import INPUT, TRAINING
from fewtokens.cli.tables import print_json, table
from fewtokens.cli.train.runs import TrainOptions, run_values, tell_run, training_progress
from fewtokens.core.keys import heading

if TYPE_CHECKING:
    from fewtokens.llm.composed import ComposedVideoLLM
    from fewtokens.train.inputs import Input


@dataclass(frozen=True)
class TalkOptions:
    """What to train and test on, and how it is read."""

    data: Annotated[
        Path,
        typer.Option(
            "--data", help="Conversations, .jsonl or .json (LLaVA-Video-178K's layout).", rich_help_panel=INPUT
        ),
    ]
    root: Annotated[
        Path | None,
        typer.Option("--root", help="Folder of the videos; default: that of --data.", rich_help_panel=INPUT),
    ] = None
    validation: Annotated[
        Path | None,
        typer.Option("--val", help="Conversations to test on: % of exact answers.", rich_help_panel=INPUT),
    ] = None
    frames: Annotated[
        int, typer.Option("--frames", help="Number of frames, spread evenly over the video.", rich_help_panel=INPUT)
    ] = 16
    size: Annotated[int, typer.Option("--size", help="Side of the frames, in pixels.", rich_help_panel=INPUT)] = 224


@dataclass(frozen=True)
class LanguageTrainOptions(TrainOptions):
    """What is particular to language models."""

    lora: Annotated[
        int | None,
        typer.Option(
            "--lora", metavar="RANK", help="Train adapters instead of the whole language model.",
            rich_help_panel=TRAINING,
        ),
    ] = None  # fmt: skip


def check_talks(talks: TalkOptions) -> None:
    """Reports what is wrong with the data before a model is loaded."""
    if not talks.data.is_file():
        raise ValueError(
            f"{talks.data}: no such file; conversations are a .jsonl or .json in LLaVA-Video-178K's layout"
        )
    check_exists(talks.validation, talks.root)


def train_language_model(
    build: Callable[[], tuple[ComposedVideoLLM, dict[str, Input]]],
    talks: TalkOptions,
    options: LanguageTrainOptions,
    base: dict[str, Any],
) -> None:
    """Trains what `build` draws with the seed of the run; `base` are settings that the command line may change."""
    import torch
    from accelerate import PartialState

    from fewtokens.data.qa_sets import conversations
    from fewtokens.train.inputs import plain_input
    from fewtokens.train.settings import Settings, parse_setting
    from fewtokens.train.video_llm import (
        PAPER,
        Conversations,
        Reading,
        add_lora,
        conversation_inputs,
        evaluator,
        train_video_llm,
    )

    given = dict(parse_setting(text) for text in options.settings or ())
    if unknown := set(given) - {each.name for each in fields(Settings)}:
        raise ValueError(f"{', '.join(sorted(unknown))} is for classification; this loop takes other settings")
    small: dict[str, Any] = {} if torch.cuda.is_available() and options.device != "cpu" else {"precision": "no"}
    values: dict[str, Any] = PAPER | {"workers": 2} | small | base | given | options.changes()
    chosen = Settings(**values)
    main = PartialState(cpu=options.device == "cpu").is_main_process
    folder = options.folder
    training = list(conversations(talks.data, talks.root))
    test = [] if talks.validation is None else list(conversations(talks.validation, talks.root))
    torch.manual_seed(chosen.seed)
    model, inputs = build()
    if options.lora is not None:
        add_lora(model, options.lora)
    reading = Reading(talks.frames, talks.size)
    inputs |= {**conversation_inputs(training, reading), "--lora": plain_input(options.lora)}
    if test:
        inputs["test data"] = conversation_inputs(test, reading)["data"]
    total = chosen.total(len(training))
    if options.dry_run:
        if main:
            _show(model, asdict(chosen), total, len(training), len(test), options.as_json)
        return
    with training_progress("training", total, ("loss", "exact_match"), main) as step:
        report = train_video_llm(
            model,
            Conversations(training, reading, model.tokenizer),
            chosen,
            folder,
            evaluate=evaluator(test, reading) if test else None,
            inputs=inputs,
            resume=not options.fresh,
            progress=step,
            device=options.device,
            trained={"frames": talks.frames, "size": talks.size, "seed": chosen.seed},
        )
    if not main:
        return
    loss = next((line["loss"] for line in reversed(report.metrics) if "loss" in line), None)
    if options.as_json:
        print_json(run_values(folder, report) | {"loss": loss})
        return
    tell_run(report, table("Test", [{"score": heading(name), "%": value} for name, value in report.scores.items()]))
    if loss is not None:
        out.print(f"loss {loss:.3f}")
    if report.broken:
        log.print(f"[yellow]{len(report.broken)} videos could not be read[/yellow], listed in {folder / 'broken.txt'}")
    out.print(f"[bold]Model[/bold]  {escape(str(folder / 'model'))}", highlight=False)


def _show(model: Any, settings: dict[str, Any], total: int, training: int, test: int, as_json: bool) -> None:
    parts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = name.partition(".")[0]
        parts[part] = parts.get(part, 0) + parameter.numel()
    if as_json:
        print_json(
            {"parameters": parts, "steps": total, "training_items": training, "test_items": test, "settings": settings}
        )
        return
    out.print(table("", [{"setting": name, "value": str(value)} for name, value in settings.items()]))
    numbers = ", ".join(f"{part} {count / 1e6:.2f} M" for part, count in parts.items())
    out.print(f"{training} conversations, {test} to test on, {total} steps; parameters: {numbers}", highlight=False)
