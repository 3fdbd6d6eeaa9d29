"""`fewtokens eval videoqa` and `fewtokens eval qa`: how many questions on videos a language model answers rightly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.ask import open_session
from fewtokens.cli.common import (
    DeviceOption,
    JsonOption,
    KeepOption,
    SeedOption,
    log,
    out,
    print_json,
    progress,
    table,
    verb,
)
from fewtokens.core.identity import identity

app = typer.Typer(add_completion=False)

ModelArgument = Annotated[str, typer.Argument(help="A folder or hub id, also one that train video-llm saved.")]
SpecOption = Annotated[str, typer.Option("--with", metavar="SPEC", help="Methods; all tokens if none.")]
FramesOption = Annotated[int, typer.Option("--frames", help="Frames of each video.")]
OutOption = Annotated[Path | None, typer.Option("--out", help="A .jsonl of replies; a stopped run goes on from it.")]
DtypeOption = Annotated[str | None, typer.Option("--dtype", help="float32, float16 or bfloat16; the model's own.")]


@app.command(
    epilog='Examples:  [bold]fewtokens eval videoqa run/model --with "token_dynamics(keep=32)"[/bold]   |   '
    "[bold]fewtokens eval videoqa Qwen/Qwen2.5-VL-3B-Instruct --items 200 --size 224 --kinds count,order[/bold]"
)
@verb
def videoqa(
    model: ModelArgument,
    spec: SpecOption = "",
    keep: KeepOption = None,
    items: Annotated[int, typer.Option("--items", min=1, help="Questions, one a clip.")] = 500,
    split: Annotated[str, typer.Option("--split", help="train, val or test.")] = "test",
    kinds: Annotated[str | None, typer.Option("--kinds", help="Some kinds of question, with commas.")] = None,
    frames: FramesOption = 16,
    size: Annotated[int, typer.Option("--size", help="Side of the clips, in pixels.")] = 64,
    replies: OutOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Questions on made clips whose answer is certain: shapes and handwritten digits that move, appear, collide, leave.

    Scored by exact match; a blind guess would have the accuracy in the last column.
    """
    from fewtokens.data.videoqa import SceneConfig, VideoQA
    from fewtokens.evaluation.videoqa import prompt, row, summarize
    from fewtokens.video import Video

    data = VideoQA(
        SceneConfig(size=size, frames=frames, seed=seed), split, items,
        kinds=None if kinds is None else tuple(kind.strip() for kind in kinds.split(",")),
    )  # fmt: skip

    def clip(number: int) -> Any:
        def make() -> Video:
            one = data[number]
            return Video(one.frames, one.times, fps=data.config.fps)

        return make

    questions = data.questions()
    asked = [(str(number), clip(number), prompt(question)) for number, question in enumerate(questions)]
    request = {"set": "videoqa", "split": split, "frames": frames, "size": size, "seed": seed, "kinds": kinds}
    made = _ask(model, spec, keep, frames, device, dtype, seed, asked, 8, replies, request)
    found = summarize([row(reply.text, question) for reply, question in zip(made, questions, strict=True)])
    tokens = sum(reply.tokens for reply in made) / len(made)
    if as_json:
        print_json({"model": model, "with": spec, "tokens": tokens, **found})
        return
    rows = [
        {"kind": kind, "right, %": 100 * part["accuracy"], "guess, %": 100 * part["chance"], "questions": part["count"]}
        for kind, part in {**found["kinds"], **found["formats"], "all": found["all"]}.items()
    ]
    out.print(table(spec or "all tokens", rows))
    _tell_tokens(tokens, 100 * found["all"]["accuracy"])


@app.command(
    epilog='Examples:  [bold]fewtokens eval qa models/qwen --set nextqa --data nextqa/ --with "tome(keep=0.1)"[/bold]'
    "   |   [bold]fewtokens eval qa run/model --set videomme --data videomme/ --limit 100 --out replies.jsonl[/bold]"
)
@verb
def qa(
    model: ModelArgument,
    name: Annotated[str, typer.Option("--set", help="nextqa, activitynetqa, longvideobench, videomme or mvbench.")],
    data: Annotated[Path, typer.Option("--data", help="The folder that the set was downloaded to.")],
    spec: SpecOption = "",
    keep: KeepOption = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Of the set; the one usually scored if not said.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="So many questions, spread evenly.")] = None,
    frames: FramesOption = 32,
    replies: OutOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Questions of a public set, in its own layout and wording.

    A reply that names no choice is wrong (others draw one at random); open answers count by equal words, without a
    judge, and are not comparable with published numbers that have one.
    """
    from fewtokens.data.qa_sets import load, prompt
    from fewtokens.evaluation.qa_sets import accuracy

    questions = load(name, data, split)
    if limit is not None and limit < len(questions):
        questions = [questions[number * len(questions) // limit] for number in range(limit)]
    asked = [
        (f"{number} {question.id}", question.video, prompt(question, name)) for number, question in enumerate(questions)
    ]
    listed = identity((), [text for id, _, words in asked for text in (id, words)])
    request = {"set": name, "split": split, "limit": limit, "frames": frames, "seed": seed, "questions": listed}
    made = _ask(model, spec, keep, frames, device, dtype, seed, asked, 32, replies, request)
    found = accuracy(questions, [reply.text for reply in made])
    tokens = sum(reply.tokens for reply in made) / len(made)
    if as_json:
        print_json({"model": model, "set": name, "with": spec, "tokens": tokens, "accuracy": found})
        return
    out.print(table(spec or "all tokens", [{"part": part, "right, %": 100 * share} for part, share in found.items()]))
    _tell_tokens(tokens, 100 * found["all"])


def _ask(
    model: str,
    spec: str,
    keep: str | None,
    frames: int,
    device: str,
    dtype: str | None,
    seed: int,
    asked: Sequence[tuple[str, Any, str]],
    length: int,
    replies: Path | None,
    request: dict[str, Any],
) -> list[Any]:
    from fewtokens.llm.replies import ask_all

    session = open_session(
        model, spec, keep, frames, None, "per_frame", None, device, dtype, seed, lambda what: None
    )  # fmt: skip
    with progress("questions", len(asked)) as advance:
        made = ask_all(
            session, asked, max_new_tokens=length, out=replies, progress=advance,
            request=request | {"model": model, "files": _files_of(model), "dtype": dtype, "with": spec, "keep": keep},
        )  # fmt: skip
    failed = [reply for reply in made if reply.error]
    if len(failed) == len(made):
        raise ValueError(f"no question could be asked: {failed[0].error}")
    if failed:
        log.print(
            f"[yellow]{len(failed)} of {len(made)} could not be asked[/yellow] and count as wrong: "
            f"{escape(str(failed[0].error))}", soft_wrap=True,
        )  # fmt: skip
    return made


def _files_of(model: str) -> str | None:
    """The identity of a model's folder, by which another model in its place is noticed; None for a hub id."""
    folder = Path(model)
    return identity(sorted(path for path in folder.rglob("*") if path.is_file())) if folder.is_dir() else None


def _tell_tokens(tokens: float, accuracy: float) -> None:
    from fewtokens.evaluation.budget import tok_dense

    out.print(f"{tokens:.2f} visual tokens a video, TokDense {tok_dense(accuracy, tokens):.3f}", highlight=False)
