"""`fewtokens eval qa`: questions of public sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewtokens.cli.command import verb
from fewtokens.cli.console import out
from fewtokens.cli.errors import check_exists
from fewtokens.cli.eval.questions import QuestionOptions, ask_all, mean_tokens, tell_tokens
from fewtokens.cli.options import INPUT
from fewtokens.cli.tables import print_json, table
from fewtokens.core.identity import identity


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
            help="nextqa, activitynetqa, longvideobench, videomme or mvbench.",
            rich_help_panel=INPUT,
        ),
    ],
    data: Annotated[Path, typer.Option("--data", help="Folder that the set was downloaded to.", rich_help_panel=INPUT)],
    split: Annotated[
        str | None,
        typer.Option("--split", help="Split of the set; default: the one usually scored.", rich_help_panel=INPUT),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Number of questions, spread evenly; default: all.", rich_help_panel=INPUT),
    ] = None,
) -> None:
    """Questions of a public set, in its own layout and wording.

    A reply that names no choice is wrong (others draw one at random); open answers count by equal words, without a
    judge, and are not comparable with published numbers that have one.
    """
    check_exists(data)
    from fewtokens.data.qa_sets import load, prompt
    from fewtokens.evaluation.qa_sets import accuracy

    questions = load(name, data, split)
    if limit is not None and limit < len(questions):
        questions = [questions[number * len(questions) // limit] for number in range(limit)]
    asked = [
        (f"{number} {question.id}", question.video, prompt(question, name)) for number, question in enumerate(questions)
    ]
    listed = identity((), [text for id, _, words in asked for text in (id, words)])
    request = {
        "dataset": name, "split": split, "limit": limit, "frames": options.frames, "seed": options.seed,
        "questions": listed,
    }  # fmt: skip
    answers = ask_all(options, asked, 32, request)
    scores = accuracy(questions, [reply.text for reply in answers])
    tokens = mean_tokens(answers)
    if options.as_json:
        print_json({
            "model": options.model, "dataset": name, "spec": options.spec, "visual_tokens": tokens, "accuracy": scores,
        })  # fmt: skip
        return
    rows = [{"part": part, "right, %": 100 * share} for part, share in scores.items()]
    out.print(table(options.spec or "all tokens", rows))
    tell_tokens(tokens, 100 * scores["all"])
