"""`fewtokens eval videoqa`: scores a video language model on generated clips."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fewtokens.cli.command import verb
from fewtokens.cli.console import out
from fewtokens.cli.eval.questions import QuestionOptions, ask_all, mean_tokens, print_tokens
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
    split: Annotated[
        str, typer.Option("--split", help="Split of the generated clips: train, val or test.", rich_help_panel=INPUT)
    ] = "test",
    kinds: Annotated[
        str | None,
        typer.Option(
            "--kinds", help="Comma-separated question types, such as count,order. Default: all.", rich_help_panel=INPUT
        ),
    ] = None,
    size: Annotated[int, typer.Option("--size", help="Side of the clips, in pixels.", rich_help_panel=INPUT)] = 64,
) -> None:
    """Score a video language model on generated clips, for which the correct answers are known.

    The clips show shapes and handwritten digits that move, appear and collide. Answers are scored by exact match;
    chance is the expected accuracy of a guess without the video.
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
        def render() -> Video:
            example = data[number]
            return Video(example.frames, example.times, fps=data.config.fps)

        return render

    questions = data.questions()
    prompts = [(str(number), clip(number), prompt(question)) for number, question in enumerate(questions)]
    request = {"dataset": "videoqa", "split": split, "frames": frames, "size": size, "seed": seed, "kinds": kinds}
    answers = ask_all(options, prompts, 8, request)
    summary = summarize([row(reply.text, question) for reply, question in zip(answers, questions, strict=True)])
    tokens = mean_tokens(answers)
    if options.as_json:
        print_json({"model": options.model, "spec": spec, "visual_tokens": tokens, **summary})
        return
    rows = [
        {
            "type": kind,
            "accuracy, %": 100 * part["accuracy"],
            "chance, %": 100 * part["chance"],
            "questions": part["count"],
        }
        for kind, part in {**summary["kinds"], **summary["formats"], "all": summary["all"]}.items()
    ]
    out.print(table(spec or "all tokens", rows))
    print_tokens(tokens, 100 * summary["all"]["accuracy"])
