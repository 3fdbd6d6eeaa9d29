"""Shared by `train video-llm` and `train token-dynamics`: conversations, and the training run."""

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
from fewtokens.cli.train.runs import TrainOptions, print_run, run_values, training_progress
from fewtokens.core.keys import heading

if TYPE_CHECKING:
    from fewtokens.llm.composed import ComposedVideoLLM
    from fewtokens.train.inputs import Input
    from fewtokens.train.loop import Objective
    from fewtokens.train.summary_tokens import MemoryReader
    from fewtokens.train.video_llm import Reading


@dataclass(frozen=True)
class ConversationOptions:
    """Training and test conversations, and how their videos are read."""

    data: Annotated[
        Path,
        typer.Option(
            "--data", help="Conversations: .jsonl or .json in the format of LLaVA-Video-178K.", rich_help_panel=INPUT
        ),
    ]
    root: Annotated[
        Path | None,
        typer.Option(
            "--root", help="Base folder of the video paths. Default: the folder of --data.", rich_help_panel=INPUT
        ),
    ] = None
    validation: Annotated[
        Path | None,
        typer.Option("--val", help="Test conversations, scored by exact match in %.", rich_help_panel=INPUT),
    ] = None
    frames: Annotated[
        int, typer.Option("--frames", help="Number of frames, spread evenly over the video.", rich_help_panel=INPUT)
    ] = 16
    size: Annotated[int, typer.Option("--size", help="Side of the frames, in pixels.", rich_help_panel=INPUT)] = 224


@dataclass(frozen=True)
class LanguageTrainOptions(TrainOptions):
    """Training options of language models."""

    lora: Annotated[
        int | None,
        typer.Option(
            "--lora", metavar="RANK", help="Train LoRA adapters of this rank instead of the full language model.",
            rich_help_panel=TRAINING,
        ),
    ] = None  # fmt: skip


def check_conversations(conversations: ConversationOptions) -> None:
    """Raises ValueError for missing data, before a model is loaded."""
    if not conversations.data.is_file():
        raise ValueError(
            f"{conversations.data}: no such file; --data must be .jsonl or .json in the format of LLaVA-Video-178K"
        )
    check_exists(conversations.validation, conversations.root)


def train_language_model(
    build: Callable[[], tuple[ComposedVideoLLM | MemoryReader, dict[str, Input]]],
    conversations: ConversationOptions,
    options: LanguageTrainOptions,
    base: dict[str, Any],
    objective: Callable[[ComposedVideoLLM, Reading], Objective] | None = None,
) -> None:
    """Trains the model that `build()` initializes with the seed of the run; options override the settings in `base`.

    Of a `MemoryReader`, the summary tokens are trained and saved.

    `objective`: makes one of `fewtokens.train.refinement`; None for the loss of the answers.
    """
    import torch
    from accelerate import PartialState

    from fewtokens.data import qa_sets
    from fewtokens.train.inputs import plain_input
    from fewtokens.train.refinement import QuestionClips, collate_clips
    from fewtokens.train.settings import Settings, parse_setting
    from fewtokens.train.summary_tokens import FILE, MemoryReader, train_summary_tokens
    from fewtokens.train.video_llm import (
        PAPER,
        Conversations,
        Reading,
        add_lora,
        answer_loss,
        answer_questions,
        conversation_inputs,
        evaluator,
        train_video_llm,
    )

    overrides = dict(parse_setting(text) for text in options.settings or ())
    if unknown := set(overrides) - {field.name for field in fields(Settings)}:
        raise ValueError(
            f"--set {', '.join(sorted(unknown))} has no effect on language models; use it with train classify"
        )
    cpu: dict[str, Any] = {} if torch.cuda.is_available() and options.device != "cpu" else {"precision": "no"}
    values: dict[str, Any] = PAPER | {"workers": 2} | cpu | base | overrides | options.changes()
    settings = Settings(**values)
    main = PartialState(cpu=options.device == "cpu").is_main_process
    folder = options.folder
    training = list(qa_sets.read_conversations(conversations.data, conversations.root))
    test = (
        []
        if conversations.validation is None
        else list(qa_sets.read_conversations(conversations.validation, conversations.root))
    )
    torch.manual_seed(settings.seed)
    model, inputs = build()
    reader = model if isinstance(model, MemoryReader) else None
    if options.lora is not None:
        if isinstance(model, MemoryReader):
            raise ValueError("--lora has no effect on summary tokens, which are trained for a frozen language model")
        add_lora(model, options.lora)
    reading = Reading(conversations.frames, conversations.size)
    inputs |= {**conversation_inputs(training, reading), "--lora": plain_input(options.lora)}
    if test:
        inputs["test data"] = conversation_inputs(test, reading)["data"]
    total = settings.total(len(training))
    if options.dry_run:
        if main:
            _print_settings(model, asdict(settings), total, len(training), len(test), options.as_json)
        return
    data = (Conversations if objective is None else QuestionClips)(training, reading, model.tokenizer)
    answer = answer_questions if reader is None else MemoryReader.answer
    with training_progress("training", total, ("loss", "exact_match"), main) as step:
        shared: dict[str, Any] = {
            "evaluate": evaluator(test, reading, answer=answer) if test else None, "inputs": inputs,
            "resume": not options.fresh, "progress": step, "device": options.device,
        }  # fmt: skip
        if isinstance(model, MemoryReader):
            report = train_summary_tokens(model, data, settings, folder, **shared)
        else:
            report = train_video_llm(
                model,
                data,
                settings,
                folder,
                objective=answer_loss if objective is None else objective(model, reading),
                collate=None if objective is None else collate_clips,
                trained={"frames": reading.frames, "size": reading.size, "seed": settings.seed},
                **shared,
            )
    if not main:
        return
    loss = next((line["loss"] for line in reversed(report.metrics) if "loss" in line), None)
    spec = {} if reader is None else {"spec": reader.spec(folder / FILE)}
    if options.as_json:
        print_json(run_values(folder, report) | {"loss": loss} | spec)
        return
    print_run(report, table("Test", [{"score": heading(name), "%": value} for name, value in report.scores.items()]))
    if loss is not None:
        out.print(f"loss {loss:.3f}")
    if report.broken:
        log.print(f"[yellow]{len(report.broken)} videos could not be read[/yellow], listed in {folder / 'broken.txt'}")
    if reader is None:
        out.print(f"[bold]Model[/bold]  {escape(str(folder / 'model'))}", highlight=False)
    else:
        out.print(escape(_ask_command(reader, spec["spec"])), highlight=False, soft_wrap=True)


def _ask_command(reader: MemoryReader, spec: str) -> str:
    """The command that answers with trained summary tokens, from as many frames as in their training."""
    from fewtokens.llm.load import trained_reading

    processor = reader.stream.processor
    frames = processor.num_frames
    more = "" if frames == trained_reading(processor.folder)["num_frames"] else f" --frames {frames}"
    return f'fewtokens ask VIDEO QUESTION --model {processor.folder}{more} --with "{spec}"'


def _print_settings(model: Any, settings: dict[str, Any], total: int, training: int, test: int, as_json: bool) -> None:
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
    counts = ", ".join(f"{part} {count / 1e6:.2f} M" for part, count in parts.items())
    out.print(
        f"{training} training and {test} test conversations, {total} steps; parameters: {counts}", highlight=False
    )
