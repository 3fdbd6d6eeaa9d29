"""`fewtokens ask`: questions on a video to a video language model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.common import (
    DeviceOption,
    FpsOption,
    FramesOption,
    JsonOption,
    KeepOption,
    SeedOption,
    SpecOption,
    log,
    out,
    parse_keep,
    print_json,
    table,
    takes_keep,
    verb,
    warn_untrained,
)

if TYPE_CHECKING:
    from fewtokens.core.method import Method
    from fewtokens.llm import Answer, Session

app = typer.Typer(add_completion=False)


@app.command(
    epilog="Examples:  [bold]fewtokens ask clip.mp4 'What happens?' --model Qwen/Qwen2.5-VL-3B-Instruct "
    '--with "token_dynamics(keep=64)"[/bold]   |   '
    "[bold]fewtokens ask clip.mp4 'What happens?' 'How many people are there?' --model models/smolvlm2 "
    '--with "tome(keep=0.1)" --frames 16 --compare[/bold]'
)
@verb
def ask(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="A video, an image or a folder of images.")],
    model: Annotated[str, typer.Option("--model", metavar="M", help="A folder, or a hub id.")],
    questions: Annotated[list[str] | None, typer.Argument(metavar="QUESTION...", help="One or more.")] = None,
    file: Annotated[Path | None, typer.Option("--questions", metavar="FILE", help="Questions, one a line.")] = None,
    spec: SpecOption = "token_dynamics(keep=32)",
    keep: KeepOption = None,
    frames: FramesOption = None,
    fps: FpsOption = None,
    layout: Annotated[
        str, typer.Option("--layout", help="per_frame keeps words between frames, collapse takes them out.")
    ] = "per_frame",
    positions: Annotated[
        str | None, typer.Option("--positions", help="keep, average or renumber; what suits the model if not said.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Length of an answer at most.")] = 128,
    compare: Annotated[bool, typer.Option("--compare", help="Answer with all tokens too: costs and answers.")] = False,
    device: DeviceOption = "auto",
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="float32, float16 or bfloat16; the model's own, float32 on a CPU, if not said."),
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Ask a video language model about a video, with few visual tokens.

    Answers are greedy and appear as they come. Several questions read and encode the video once. --compare answers
    with all tokens first, then with few: tokens, seconds to the first token, tokens a second, memory, both answers.
    Memory is what is needed beyond weights and features; on a CPU the prefill is run once more to measure it.
    """
    asked = _questions(questions or [], file)
    if frames is not None and fps is not None:
        raise ValueError("say --frames or --fps, not both")
    if not video.exists():
        raise ValueError(f"{video}: no such file")
    with _spinner(as_json) as say:
        session = open_session(model, spec, keep, frames, fps, layout, positions, device, dtype, seed, say)
        full = session.unreduced() if compare else None
        if compare:
            session.warm_up()  # or the first of the two would pay for it
        rows = []
        for question in asked:
            if len(asked) > 1 and not as_json:
                say(None)
                out.print(f"\n[bold]{escape(question)}[/bold]", soft_wrap=True, highlight=False)
            if full is None:
                rows.append(_one(session, video, question, spec, max_new_tokens, False, as_json, say))
                continue
            both = [
                _one(asker, video, question, name, max_new_tokens, True, True, say)
                for asker, name in ((full, "full"), (session, spec))
            ]
            # They share one reading and one encoding, which each of them would have paid alone.
            both[1] |= {name: both[0][name] for name in ("decode", "encode")}
            both[1]["first"] = sum(both[1][name] for name in ("decode", "encode", "reduce", "prefill"))
            rows += both
            say(None)
            if not as_json:
                _print_both(both)
    if as_json:
        print_json({"video": str(video), "model": model, "with": spec, "answers": rows})


def _questions(questions: list[str], file: Path | None) -> list[str]:
    if file is not None:
        from fewtokens.core.files import read_lines

        questions = questions + [line.strip() for _, line in read_lines(file)]
    questions = [question for question in questions if question.strip()]
    if not questions:
        raise ValueError('ask something: fewtokens ask VIDEO "What happens?" --model M, or --questions FILE')
    return questions


def open_session(
    name: str,
    spec: str,
    keep: str | None,
    frames: int | None,
    fps: float | None,
    layout: str,
    positions: str | None,
    device: str,
    dtype: str | None,
    seed: int,
    say: Callable[[str | None], None],
) -> Session:
    """The session that the options describe, with a model of transformers or one that `train video-llm` saved."""
    from fewtokens.core.method import Method
    from fewtokens.core.pipeline import Pipeline
    from fewtokens.llm import Session, find, load
    from fewtokens.llm.composed import is_video_llm
    from fewtokens.llm.cues import check_cues

    composed = is_video_llm(name)
    if composed and (fps is not None or layout != "per_frame" or positions is not None or dtype is not None):
        raise ValueError(f"{name} takes --frames; --fps, --layout, --positions and --dtype are for other models")
    # What is wrong with the spec is said before weights are read, which may take minutes.
    _, config, backend = find(name)
    methods = _methods(spec, keep, seed, config.get_text_config().hidden_size)
    check_cues(backend, Pipeline([method for method in methods if method.stage in ("pixels", "tokens")]))
    say(f"loading {name}")
    model, processor = load(name, device, dtype)
    for note in processor.notes:
        say(None)
        log.print(f"[yellow]note:[/yellow] {escape(note)}", soft_wrap=True, highlight=False)
    for method in methods:
        if isinstance(method, Method):
            method.to(model.device)
    session = Session(model, processor, methods, frames, fps=fps, layout=layout, positions=positions)
    session.progress = say
    return session


def _methods(spec: str, keep: str | None, seed: int, width: int) -> list[Method]:
    """The methods of a spec, with what the command line adds."""
    import torch

    from fewtokens.core import registry
    from fewtokens.core.method import Method

    budget = parse_keep(keep)
    if budget is not None and not takes_keep(spec):
        raise ValueError(f"--keep {keep} would change nothing: no method in {spec!r} leaves its budget open")
    torch.manual_seed(seed)
    known = {"seed": seed, "dim": width} | ({} if budget is None else {"keep": budget})
    methods = registry.build(spec, **known) if spec.strip() else []
    modules = [method for method in methods if isinstance(method, Method)]
    warn_untrained(modules)
    for method in modules:
        method.eval()
    return methods


def _one(
    session: Session,
    video: Path,
    question: str,
    name: str,
    max_new_tokens: int,
    memory: bool,
    quiet: bool,
    say: Callable[[str | None], None],
) -> dict[str, Any]:
    """Answers one question; prints the answer as it comes unless it is quiet."""

    def write(text: str) -> None:
        say(None)
        sys.stdout.write(text)
        sys.stdout.flush()

    answer = session.ask(video, question, max_new_tokens, None if quiet else write, memory=memory)
    if not quiet:
        write("\n")
        log.print(
            f"{answer.tokens} visual tokens of {answer.cells}, first token after {answer.first_token:.2f} s",
            highlight=False,
        )
    return _row(name, question, answer)


def _row(name: str, question: str, answer: Answer) -> dict[str, Any]:
    return {
        "with": name,
        "question": question,
        "answer": answer.text,
        "tokens": answer.tokens,
        "cells": answer.cells,
        "prompt": answer.prompt_tokens,
        "new": answer.new_tokens,
        "first": answer.first_token,
        **answer.seconds,
        "tokens_per_second": answer.speed,
        "memory_bytes": answer.memory,
    }


def _print_both(rows: list[dict[str, Any]]) -> None:
    # Two tables, since one would not fit a narrow terminal.
    counts = [
        {
            "with": row["with"],
            "visual tokens": row["tokens"],
            "prompt tokens": row["prompt"],
            "tokens/s": row["tokens_per_second"],
            "MiB": None if row["memory_bytes"] is None else row["memory_bytes"] / 2**20,
        }
        for row in rows
    ]
    stages = ("decode", "encode", "reduce", "prefill")
    seconds = [
        {"with": row["with"], **{name: row[name] for name in stages}, "first token": row["first"]} for row in rows
    ]
    out.print(table("tokens, speed, memory", counts))
    out.print(table("seconds to the first token", seconds))
    for row in rows:
        out.print(f"[bold]{escape(row['with'])}:[/bold] {escape(row['answer'])}", soft_wrap=True, highlight=False)


@contextmanager
def _spinner(quiet: bool) -> Iterator[Callable[[str | None], None]]:
    """Says on a terminal what is being done; gives the function that sets it, and stops it by None."""
    status = log.status("")
    shown = log.is_terminal and not quiet

    def say(what: str | None) -> None:
        if not shown:
            return
        if what is None:
            status.stop()
        else:
            status.update(escape(what))
            status.start()

    try:
        yield say
    finally:
        status.stop()
