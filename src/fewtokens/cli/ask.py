"""`fewtokens ask`: asks a video language model about a video."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.ask_stream import Question, StreamOptions, StreamRun, answer_row, frames_of, write
from fewtokens.cli.command import Mode, verb
from fewtokens.cli.console import log, note, out
from fewtokens.cli.errors import check_exists, is_given
from fewtokens.cli.options import (
    INPUT,
    MODEL,
    OUTPUT,
    Check,
    FpsOption,
    JsonOption,
    MethodOptions,
    RunOptions,
    SelectOptions,
    check_model,
    find_model,
)
from fewtokens.cli.pipelines import make_methods, selection_of
from fewtokens.cli.progress import progress
from fewtokens.cli.tables import print_json, table
from fewtokens.core.checks import check_dtype

if TYPE_CHECKING:
    from fewtokens.llm import Answer, Processor, Session

FRAMES = 32
# The stages until the first token, each timed.
STAGES = ("decode", "encode", "reduce", "prefill")

ModelOption = Annotated[
    str,
    typer.Option(
        "--model", metavar="M", help="Video language model: hub id, or folder (also one written by train video-llm).",
        rich_help_panel=MODEL,
    ),
    Check(check_model, find_model),
]  # fmt: skip
ModelDtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype", help="float32, float16 or bfloat16. Default: that of the model; float32 on a CPU.",
        rich_help_panel=MODEL,
    ),
    Check(check_dtype),
]  # fmt: skip


@dataclass(frozen=True)
class SessionOptions:
    """A video language model, and how it reads a video."""

    model: ModelOption
    frames: Annotated[
        int | None,
        typer.Option(
            "--frames",
            help="Number of frames, spread evenly over the video. Default: 32; for a model of train video-llm, as in "
            "training.",
            rich_help_panel=INPUT,
        ),
    ] = None
    fps: FpsOption = None
    layout: Annotated[
        str,
        typer.Option(
            "--layout",
            help="Text between frames, in Qwen3-VL, InternVL, SmolVLM and VideoLLaMA 3: per_frame keeps it, collapse "
            "removes it.",
            rich_help_panel=MODEL,
        ),
    ] = "per_frame"
    positions: Annotated[
        str | None,
        typer.Option(
            "--positions",
            help="Position ids of the tokens: keep, average or renumber. Default: average in Qwen2-VL, Qwen2.5-VL and "
            "Qwen3-VL, renumber in other models.",
            rich_help_panel=MODEL,
        ),
    ] = None
    dtype: ModelDtypeOption = None


@verb(
    "fewtokens ask clip.mp4 'What happens?' --model Qwen/Qwen2.5-VL-3B-Instruct",
    "fewtokens ask clip.mp4 'What happens?' --model models/smolvlm2 --with \"evs(keep=0.25)\" --frames 16 --compare",
    "fewtokens ask clip.mp4 --questions questions.txt --model run/model --json",
    "fewtokens ask clip.mp4 'Why does she leave?' --model Qwen/Qwen2.5-VL-3B-Instruct --decompose 4",
    "fewtokens ask --stream camera.mp4 'What happened so far?' --model Qwen/Qwen2.5-VL-3B-Instruct",
    "fewtokens ask --stream rtsp://camera/1 --trigger 0.05 --with \"videoscan(cap=64)\" --model models/smolvlm2",
    modes=(
        Mode(
            "stream", lambda values: values["stream"] is not None,
            ("frames", "compare", "select", "scorer", "near", "decompose"), "have no effect with --stream",
        ),
        Mode(
            "no stream", lambda values: values["stream"] is None, ("trigger", "snapshot", "resume"),
            "require --stream",
        ),
    ),
)  # fmt: skip
def ask(
    context: typer.Context,
    session: SessionOptions,
    run: RunOptions,
    video: Annotated[
        str | None,
        typer.Argument(metavar="VIDEO", help="A video, an image or a folder of images; not with --stream."),
    ] = None,
    questions: Annotated[list[str] | None, typer.Argument(metavar="QUESTION", help="One or more questions.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--questions",
            metavar="FILE",
            help="Text file, one question per line, with --stream optionally after its second (12.5 What happens?).",
            rich_help_panel=INPUT,
        ),
    ] = None,
    selecting: SelectOptions = SelectOptions(),
    streaming: StreamOptions = StreamOptions(),
    method: MethodOptions = MethodOptions(spec="token_dynamics(keep=32)"),
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", help="Maximum length of an answer, in tokens.", rich_help_panel=OUTPUT)
    ] = 128,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Also answer with all tokens, and compare costs and answers.", rich_help_panel=OUTPUT
        ),
    ] = False,
    decompose: Annotated[
        int | None,
        typer.Option(
            "--decompose",
            metavar="K",
            help="The model first writes up to K simpler questions and answers them: up to K + 2 calls per question.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a video language model about a video, with few visual tokens.

    Decoding is greedy, and answers are printed as they are generated. The video is read and encoded once for all
    questions. --compare answers first with all tokens, then with few, and prints tokens, time to first token,
    tokens per second, memory and both answers. Visual tokens are counted before the language model, and in its last
    layer if methods act inside it. Memory excludes weights and features; on a CPU, the prefill runs a
    second time to measure it.

    With --stream, one frame per second (--fps) is encoded and pushed to a memory of bounded size (--with, by default
    moviechat(cap=24, short=8)), from which questions are answered at their second, at the end, or when they are typed.
    The exit code is 2 if the stream ends before the second of a question.
    """
    if streaming.stream is not None:
        if "://" not in streaming.stream:
            check_exists(Path(streaming.stream))
        check_exists(file, streaming.resume)
        texts = [*([] if video is None else [video]), *(questions or [])]
        if not is_given(context, "spec"):
            method = replace(method, spec="")
        _ask_stream(streaming, texts, file, session, method, run, max_new_tokens, as_json)
        return
    if video is None:
        raise ValueError("no video; use fewtokens ask VIDEO QUESTION --model M, or --stream SOURCE")
    path = Path(video)
    check_exists(path, file)
    prompts = _questions(questions or [], file)
    if session.frames is not None and session.fps is not None:
        raise ValueError("give --frames or --fps, not both")
    if selecting.select is not None and (session.frames, session.fps) != (None, None):
        raise ValueError("--frames and --fps cannot be combined with --select")
    if selecting.select is None and (selecting.scorer is not None or selecting.near):
        raise ValueError(f"{'--near' if selecting.scorer is None else '--scorer'} requires --select")
    if decompose is not None and compare:
        raise ValueError("--decompose and --compare cannot be combined")
    if decompose is not None and decompose < 1:
        raise ValueError(f"--decompose must be at least 1, got {decompose}")
    selects = selection_of(selecting, prompts[0], run, session=True)
    with _spinner(as_json) as say, progress("questions", len(prompts), bar=False) as advance:
        few = open_session(session, method, run, say, selects)
        if few.select is not None and few.select.sizes and not few.backend.any_size:
            say(None)
            note(
                "note:",
                f"{few.backend.name} encodes all frames at full size; their tokens are averaged afterwards to the "
                f"sizes that {few.select.name} chooses, so the vision tower saves nothing",
            )
        full = few.unreduced() if compare else None
        if compare:
            few.warm_up()  # otherwise only the first of the two would include it
        rows = []
        for number, question in enumerate(prompts):
            advance(number)
            if len(prompts) > 1 and not as_json:
                say(None)
                out.print(f"\n[bold]{escape(question)}[/bold]", soft_wrap=True, highlight=False)
            if decompose is not None:
                rows.append(_answer_in_parts(few, path, question, method.spec, max_new_tokens, decompose, as_json, say))
                continue
            if full is None:
                rows.append(_answer(few, path, question, method.spec, max_new_tokens, False, as_json, say))
                continue
            both = [
                _answer(asker, path, question, name, max_new_tokens, True, True, say)
                for asker, name in ((full, "full"), (few, method.spec))
            ]
            if not few.tower_methods.specs:
                # Both share one decoding and one encoding, which each would need alone.
                both[1] |= {key: both[0][key] for key in ("decode_seconds", "encode_seconds")}
                both[1]["first_token_seconds"] = sum(both[1][f"{stage}_seconds"] for stage in STAGES)
            rows += both
            say(None)
            if not as_json:
                _print_comparison(both)
    if as_json:
        print_json({"video": str(video), "model": session.model, "spec": method.spec, "answers": rows})


def _questions(questions: list[str], file: Path | None) -> list[str]:
    if file is not None:
        from fewtokens.core.files import read_lines

        questions = questions + [line.strip() for _, line in read_lines(file)]
    questions = [question for question in questions if question.strip()]
    if not questions:
        raise ValueError('no question; use fewtokens ask VIDEO "What happens?" --model M, or --questions FILE')
    return questions


def open_session(
    options: SessionOptions,
    method_options: MethodOptions,
    run: RunOptions,
    say: Callable[[str | None], None],
    selects: Mapping[str, Any] = MappingProxyType({}),
) -> Session:
    """Opens a session with a Transformers model, or with one that `train video-llm` wrote.

    `selects`: what selects the frames, see `selection_of`.
    """
    from fewtokens.llm import Session

    model, processor, methods, frames = _load(options, method_options, run, say, selects=bool(selects))
    session = Session(
        model,
        processor,
        methods,
        frames,
        fps=options.fps,
        select=selects.get("select"),
        scorer=selects.get("scorer"),
        near=selects.get("near", 0.0),
        layout=options.layout,
        positions=options.positions,
    )
    session.progress = say
    return session


def _load(
    options: SessionOptions,
    method_options: MethodOptions,
    run: RunOptions,
    say: Callable[[str | None], None],
    *,
    streams: bool = False,
    selects: bool = False,
) -> tuple[Any, Processor, list[Any], int | None]:
    """Loads a model; returns it with its processor, the methods, and the number of frames of a video.

    Args:
        streams: whether the video is a stream, in which any model has a frame rate.
        selects: whether a method selects the frames.
    """
    from fewtokens.core.method import Method
    from fewtokens.core.pipeline import Pipeline
    from fewtokens.llm import find, load
    from fewtokens.llm.composed import is_video_llm
    from fewtokens.llm.cues import check_cues
    from fewtokens.llm.tower_run import TowerMethods

    name, frames = options.model, options.frames
    composed, fps = is_video_llm(name), None if streams else options.fps
    if composed and (fps, options.layout, options.positions, options.dtype) != (None, "per_frame", None, None):
        given = "--layout" if streams else "--fps, --layout"
        raise ValueError(f"{name} was written by train video-llm: {given}, --positions and --dtype have no effect")
    if composed and selects:
        raise ValueError(
            f"{name} was written by train video-llm: --select has no effect; it reads a fixed number of frames"
        )
    if frames is None and options.fps is None and not composed and not selects:
        frames = FRAMES
    # Errors in the spec are reported before weights are read, which may take minutes.
    _, config, backend = find(name)
    methods = make_methods(method_options, run.seed, config.get_text_config().hidden_size)
    before = Pipeline([method for method in methods if method.stage in ("pixels", "encoder", "tokens")])
    TowerMethods.of(before)
    check_cues(backend, None, before)
    say(f"loading {name}")
    model, processor = load(name, run.device, options.dtype)
    for text in processor.notes:
        say(None)
        note("note:", text)
    for method in methods:
        if isinstance(method, Method):
            method.to(model.device)
    return model, processor, methods, frames


def _ask_stream(
    streaming: StreamOptions,
    texts: list[str],
    file: Path | None,
    options: SessionOptions,
    method: MethodOptions,
    run: RunOptions,
    max_new_tokens: int,
    as_json: bool,
) -> None:
    """Asks about a stream, see `StreamRun`; an empty spec is the default memory."""
    from fewtokens.core.files import read_lines
    from fewtokens.llm import StreamSession
    from fewtokens.llm.stream_session import DEFAULT_MEMORY

    assert streaming.stream is not None
    questions = [Question(text) for text in texts if text.strip()]
    if file is not None:
        questions += [Question.parse(line) for _, line in read_lines(file)]
    method = replace(method, spec=method.spec or DEFAULT_MEMORY)
    fps = 1.0 if options.fps is None else options.fps
    with _spinner(as_json) as say:
        model, processor, methods, _ = _load(options, method, run, say, streams=True)
        session = StreamSession(
            model, processor, methods, layout=options.layout, positions=options.positions, trigger=streaming.trigger
        )
        if streaming.resume is not None:
            session.restore(streaming.resume)
        stream = StreamRun(
            session, questions, terminal=not questions, max_new_tokens=max_new_tokens, quiet=as_json, say=say
        )
        complete = stream.follow(frames_of(streaming.stream, fps, processor.read_size), fps)
        if streaming.snapshot is not None:
            session.snapshot(streaming.snapshot)
    stream.finish({"stream": streaming.stream, "model": options.model, "spec": session.spec}, complete, as_json)


def _shown_by(say: Callable[[str | None], None]) -> Callable[[str], None]:
    """Returns what prints a piece of an answer, after the spinner has ended."""

    def show(text: str) -> None:
        say(None)
        write(text)

    return show


def _answer(
    session: Session,
    video: Path,
    question: str,
    name: str,
    max_new_tokens: int,
    memory: bool,
    quiet: bool,
    say: Callable[[str | None], None],
) -> dict[str, Any]:
    """Answers one question; prints the answer while it is generated, unless `quiet`."""
    show = _shown_by(say)
    answer = session.ask(video, question, max_new_tokens, None if quiet else show, memory=memory)
    if not quiet:
        show("\n")
        _print_cost(answer)
    return _row(name, question, answer)


def _answer_in_parts(
    session: Session,
    video: Path,
    question: str,
    name: str,
    max_new_tokens: int,
    parts: int,
    quiet: bool,
    say: Callable[[str | None], None],
) -> dict[str, Any]:
    """Answers one question by way of up to `parts` simpler ones; prints all of them, unless `quiet`."""
    from fewtokens.llm import ask_in_parts

    show = _shown_by(say)

    def show_part(simpler: str, answer: str) -> None:
        say(None)
        log.print(f"{escape(simpler)} {escape(answer)}", soft_wrap=True, highlight=False)

    shown = (None, None) if quiet else (show, show_part)
    found = ask_in_parts(session, video, question, parts, max_new_tokens, *shown)
    if not quiet:
        show("\n")
        _print_cost(found.answer)
        log.print(
            f"{len(found.calls)} calls of the model, {found.prompt_tokens} tokens in their prompts, "
            f"{found.prompt_tokens / found.answer.prompt_tokens:.1f} times those of the last one, "
            f"{found.seconds:.2f} s",
            highlight=False,
        )
    return _row(name, question, found.answer) | {
        "parts": [{"question": simpler, "answer": answer.text} for simpler, answer in found.parts],
        "calls": len(found.calls),
        "all_prompt_tokens": found.prompt_tokens,
        "all_seconds": found.seconds,
    }


def _print_cost(answer: Answer) -> None:
    log.print(
        f"{answer.tokens} visual tokens of {answer.cells}{_in_last_layer(answer)}, first token after "
        f"{answer.first_token:.2f} s",
        highlight=False,
    )
    if answer.sizes:
        runs = ", ".join(f"{steps} of {rows}x{columns}" for steps, rows, columns in answer.sizes)
        total = sum(steps * rows * columns for steps, rows, columns in answer.sizes)
        log.print(f"{total} tokens before methods, steps of several sizes: {runs}", highlight=False)


def _in_last_layer(answer: Answer) -> str:
    return f" ({answer.layer_tokens[-1]} in the last layer)" if answer.layer_tokens else ""


def _row(name: str, question: str, answer: Answer) -> dict[str, Any]:
    return {
        "spec": name,
        **answer_row(question, answer),
        "sizes": answer.sizes,
        **{f"{stage}_seconds": answer.seconds[stage] for stage in STAGES},
        "memory_bytes": answer.memory,
    }


def _print_comparison(rows: list[dict[str, Any]]) -> None:
    # Two tables, because one would not fit a narrow terminal.
    layers = any(row["layer_tokens"] for row in rows)
    counts = [
        {
            "method": row["spec"],
            "visual tokens": row["visual_tokens"],
            **({"in the last layer": (row["layer_tokens"] or [row["visual_tokens"]])[-1]} if layers else {}),
            "prompt tokens": row["prompt_tokens"],
            "tokens/s": row["tokens_per_second"],
            "MiB": None if row["memory_bytes"] is None else row["memory_bytes"] / 2**20,
        }
        for row in rows
    ]
    seconds = [
        {"method": row["spec"]}
        | {stage: row[f"{stage}_seconds"] for stage in STAGES}
        | {"first token": row["first_token_seconds"]}
        for row in rows
    ]
    out.print(table("tokens, speed, memory", counts))
    out.print(table("seconds to the first token", seconds))
    for row in rows:
        out.print(f"[bold]{escape(row['spec'])}:[/bold] {escape(row['answer'])}", soft_wrap=True, highlight=False)


@contextmanager
def _spinner(quiet: bool) -> Iterator[Callable[[str | None], None]]:
    """Shows the current activity on a terminal; returns the function that sets it (None stops the spinner)."""
    status = log.status("")
    shown = log.is_terminal and not quiet

    def say(activity: str | None) -> None:
        if not shown:
            return
        if activity is None:
            status.stop()
        else:
            status.update(escape(activity))
            status.start()

    try:
        yield say
    finally:
        status.stop()
