"""`fewtokens eval videoqa`: questions on generated clips, whose answers are certain."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fewtokens.cli.command import verb
from fewtokens.cli.console import out
from fewtokens.cli.eval.questions import QuestionOptions, ask_all, mean_tokens, tell_tokens
from fewtokens.cli.options import INPUT
from fewtokens.cli.pipelines import comma_separated
from fewtokens.cli.tables import print_json, table


@verb(
    'fewtokens eval videoqa --model run/model --with "token_dynamics(keep=32)"',
    "fewtokens eval videoqa --model Qwen/Qwen2.5-VL-3B-Instruct --limit 200 --size 224 --kinds count,order",
)
def videoqa(
    options: QuestionOptions = QuestionOptions(model="", frames=16),
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="Number of questions, one per clip.", rich_help_panel=INPUT)
    ] = 500,
    split: Annotated[str, typer.Option("--split", help="train, val or test.", rich_help_panel=INPUT)] = "test",
    kinds: Annotated[
        str | None, typer.Option("--kinds", help="Comma-separated kinds of question.", rich_help_panel=INPUT)
    ] = None,
    size: Annotated[int, typer.Option("--size", help="Side of the clips, in pixels.", rich_help_panel=INPUT)] = 64,
) -> None:
    """Questions on generated clips whose answer is certain: shapes and handwritten digits that move, appear, collide.

    Scored by exact match; a blind guess would have the accuracy in the last column.
    """
    from fewtokens.data.videoqa import SceneConfig, VideoQA
    from fewtokens.evaluation.videoqa import prompt, row, summarize
    from fewtokens.video import Video

    frames, seed, spec = options.frames, options.seed, options.spec
    data = VideoQA(
        SceneConfig(size=size, frames=frames, seed=seed), split, limit,
        kinds=None if kinds is None else tuple(comma_separated(kinds)),
    )  # fmt: skip

    def clip(number: int) -> Any:
        def make() -> Video:
            one = data[number]
            return Video(one.frames, one.times, fps=data.config.fps)

        return make

    questions = data.questions()
    asked = [(str(number), clip(number), prompt(question)) for number, question in enumerate(questions)]
    request = {"dataset": "videoqa", "split": split, "frames": frames, "size": size, "seed": seed, "kinds": kinds}
    answers = ask_all(options, asked, 8, request)
    summary = summarize([row(reply.text, question) for reply, question in zip(answers, questions, strict=True)])
    tokens = mean_tokens(answers)
    if options.as_json:
        print_json({"model": options.model, "spec": spec, "visual_tokens": tokens, **summary})
        return
    rows = [
        {"kind": kind, "right, %": 100 * part["accuracy"], "guess, %": 100 * part["chance"], "questions": part["count"]}
        for kind, part in {**summary["kinds"], **summary["formats"], "all": summary["all"]}.items()
    ]
    out.print(table(spec or "all tokens", rows))
    tell_tokens(tokens, 100 * summary["all"]["accuracy"])
