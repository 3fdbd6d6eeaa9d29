"""Shared by `eval qa` and `eval videoqa`: options, and questions to a video language model with saved replies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fewtokens.cli.ask import ModelDtypeOption, ModelOption, SessionOptions, open_session
from fewtokens.cli.console import note, out
from fewtokens.cli.options import INPUT, OUTPUT, JsonOption, MethodOptions, RunOptions
from fewtokens.cli.progress import progress
from fewtokens.core.identity import identity


@dataclass(frozen=True)
class _Model:
    model: ModelOption


@dataclass(frozen=True)
class QuestionOptions(RunOptions, MethodOptions, _Model):
    """A video language model, how it reads a video, and the output file."""

    frames: Annotated[
        int, typer.Option("--frames", help="Number of frames per video, spread evenly over it.", rich_help_panel=INPUT)
    ] = 32
    dtype: ModelDtypeOption = None
    replies: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Output .jsonl file of replies. Resumes if it already contains some.",
            rich_help_panel=OUTPUT,
        ),
    ] = None
    as_json: JsonOption = False


def ask_all(
    options: QuestionOptions, questions: Sequence[tuple[str, Any, str]], length: int, request: dict[str, Any]
) -> list[Any]:
    """Returns the replies, of at most `length` tokens each, to questions (id, video, prompt)."""
    from fewtokens.llm import replies

    model = options.model
    session_options = SessionOptions(model, frames=options.frames, dtype=options.dtype)
    session = open_session(session_options, options, options, lambda activity: None)
    request |= {"model": model, "files": _files_of(model), "dtype": options.dtype, "spec": options.spec}
    with progress("questions", len(questions)) as advance:
        answers = replies.ask_all(
            session, questions, max_new_tokens=length, out=options.replies, progress=advance,
            request=request | {"keep": options.keep},
        )  # fmt: skip
    failed = [reply for reply in answers if reply.error]
    if len(failed) == len(answers):
        raise ValueError(f"no question could be answered: {failed[0].error}")
    if failed:
        note(f"{len(failed)} of {len(answers)} questions failed", f"and count as wrong; the first: {failed[0].error}")
    return answers


def _files_of(model: str) -> str | None:
    """Returns a hash of the files in a model's folder, which changes if the model is replaced; None for a hub id."""
    folder = Path(model)
    return identity(sorted(path for path in folder.rglob("*") if path.is_file())) if folder.is_dir() else None


def mean_tokens(answers: Sequence[Any]) -> float:
    """Returns the mean number of visual tokens per question."""
    return sum(reply.tokens for reply in answers) / len(answers)


def print_tokens(tokens: float, accuracy: float) -> None:
    """Prints the number of visual tokens and TokDense; `accuracy` in %."""
    from fewtokens.evaluation.budget import tok_dense

    out.print(f"{tokens:.2f} visual tokens per question, TokDense {tok_dense(accuracy, tokens):.3f}", highlight=False)
