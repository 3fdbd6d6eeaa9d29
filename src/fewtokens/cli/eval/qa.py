"""`fewtokens eval qa`: scores a video language model on public question sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewtokens.cli.command import verb
from fewtokens.cli.console import out
from fewtokens.cli.errors import check_exists
from fewtokens.cli.eval.questions import QuestionOptions, ask_all, mean_tokens, print_tokens
from fewtokens.cli.options import INPUT
from fewtokens.cli.tables import print_json, table
from fewtokens.core.identity import identity

if TYPE_CHECKING:
    from fewtokens.data.qa_sets import Question
    from fewtokens.llm.session import VideoPart


@verb(
    'fewtokens eval qa --model models/qwen --dataset nextqa --data nextqa/ --with "tome(keep=0.1)"',
    "fewtokens eval qa --model run/model --dataset videomme --data videomme/ --limit 100 --out replies.jsonl",
)
def qa(
    options: QuestionOptions,
    name: Annotated[
        str,
        typer.Option(
            "--dataset",
            help="Question set: nextqa, activitynetqa, longvideobench, videomme or mvbench.",
            rich_help_panel=INPUT,
        ),
    ],
    data: Annotated[Path, typer.Option("--data", help="Folder of the downloaded set.", rich_help_panel=INPUT)],
    split: Annotated[
        str | None,
        typer.Option("--split", help="Split of the set. Default: the one usually scored.", rich_help_panel=INPUT),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=1,
            help="Number of questions, spread evenly over the set. Default: all.",
            rich_help_panel=INPUT,
        ),
    ] = None,
) -> None:
    """Score a video language model on a public question set, with the file layout and prompts of that set.

    A reply that names no choice counts as wrong (some other tools then sample a choice). Open answers are scored by
    equal words, without an LLM as judge, and are not comparable with published numbers that use one.
    """
    check_exists(data)
    from fewtokens.data.qa_sets import format_prompt, load_questions
    from fewtokens.evaluation import qa_sets
    from fewtokens.llm.session import VideoPart

    questions = load_questions(name, data, split)
    if limit is not None and limit < len(questions):
        questions = [questions[number * len(questions) // limit] for number in range(limit)]
    for question in questions:
        qa_sets.check_published(question)
    prompts = [
        (f"{number} {question.id}", _part_of(question), format_prompt(question, name))
        for number, question in enumerate(questions)
    ]
    bounds = [f"{video.start} {video.end}" for _, video, _ in prompts if isinstance(video, VideoPart)]
    digest = identity((), [part for id, _, text in prompts for part in (id, text)] + bounds)
    request = {
        "dataset": name, "split": split, "limit": limit, "frames": options.frames, "seed": options.seed,
        "questions": digest,
    }  # fmt: skip
    answers = ask_all(options, prompts, 32, request)
    scores = qa_sets.accuracy(questions, [reply.text for reply in answers])
    tokens = mean_tokens(answers)
    if options.as_json:
        print_json({
            "model": options.model, "dataset": name, "spec": options.spec, "visual_tokens": tokens, "accuracy": scores,
        })  # fmt: skip
        return
    rows = [{"questions": part, "accuracy, %": 100 * accuracy} for part, accuracy in scores.items()]
    out.print(table(options.spec or "all tokens", rows))
    print_tokens(tokens, 100 * scores["all"])


def _part_of(question: Question) -> Path | VideoPart:
    """The part of the video that a question is about, or all of it."""
    from fewtokens.llm.session import VideoPart

    if question.start is None and question.end is None:
        return question.video
    return VideoPart(question.video, question.start or 0.0, question.end)
