"""`fewtokens train video-llm`: trains a video language model from a video encoder and a language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewtokens.cli.command import Mode, verb
from fewtokens.cli.errors import check_exists
from fewtokens.cli.options import ENCODER, METHOD, MODEL, TRAINING, Check, check_model, check_specs, find_model
from fewtokens.cli.train.language_model import (
    ConversationOptions,
    LanguageTrainOptions,
    check_conversations,
    train_language_model,
)

if TYPE_CHECKING:
    from fewtokens.llm.composed import ComposedVideoLLM
    from fewtokens.train.inputs import Input
    from fewtokens.train.loop import Objective
    from fewtokens.train.summary_tokens import MemoryReader
    from fewtokens.train.video_llm import Reading

OBJECTIVES = ("answers", "sevila", "marc", "video_xl")


@verb(
    "fewtokens train video-llm --data train.jsonl --encoder facebook/dinov2-small --llm Qwen/Qwen2.5-0.5B-Instruct "
    '--with "token_dynamics(keep=32)" --out run',
    "fewtokens train video-llm --data train.jsonl --encoder dinov2/ --llm qwen/ --lora 16 --set rates=encoder=0 "
    "--out run",
    'fewtokens train video-llm --data train.jsonl --encoder dinov2/ --llm qwen/ --with "mean_pool(keep=32)" '
    "--streams slow_fast --out run",
    "fewtokens train video-llm --data train.jsonl --encoder clip/ --encoder2 vivit/ --llm qwen/ "
    '--with "spatial_pool(stride=2)" --out run',
    'fewtokens train video-llm --data train.jsonl --from run/model --objective marc --with "marc(events=3)" --out few',
    "fewtokens train video-llm --data train.jsonl --from run/model --objective sevila --out localizer",
    'fewtokens train video-llm --data train.jsonl --from run/model --objective video_xl --with "video_xl(ratio=8)" '
    "--out few",
    modes=(
        Mode(
            "from",
            lambda values: values["start"] is not None,
            ("encoder", "llm", "encoder2", "segment", "pool", "positions", "streams"),
            "have no effect with --from",
        ),
    ),
)
def video_llm(
    conversations: ConversationOptions,
    options: LanguageTrainOptions,
    encoder: Annotated[
        str | None,
        typer.Option("--encoder", help="Video encoder, a ViT: folder or hub id.", rich_help_panel=ENCODER),
        Check(check_model, find_model),
    ] = None,
    llm: Annotated[
        str | None,
        typer.Option("--llm", help="Causal language model: folder, .gguf file or hub id.", rich_help_panel=MODEL),
        Check(check_model, find_model),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FOLDER",
            help="Start from a model that train video-llm wrote, instead of --encoder and --llm.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    objective: Annotated[
        str,
        typer.Option(
            "--objective",
            help="answers: the written answers. sevila: for which frames the model of --from answers right. marc: "
            "right answers with few tokens, more if the model of --from is right with all. video_xl: the written "
            "answers, which train only the summary tokens of the memory of --with.",
            rich_help_panel=TRAINING,
        ),
    ] = "answers",
    encoder2: Annotated[
        str | None,
        typer.Option(
            "--encoder2",
            rich_help_panel=ENCODER,
            help="Second encoder, which sees the frames in segments: a network for clips of fewtokens train, or a ViT. "
            "Its tokens follow those of the first; --with reduces both.",
        ),
        Check(check_model, find_model),
    ] = None,
    segment: Annotated[
        int | None,
        typer.Option(
            "--segment",
            metavar="FRAMES",
            rich_help_panel=ENCODER,
            help="Frames that the second encoder sees at once. Default: 4.",
        ),
    ] = None,
    spec: Annotated[
        str,
        typer.Option(
            "--with",
            metavar="SPEC",
            rich_help_panel=METHOD,
            help="Spec of the methods between encoder and language model, and of trained ones inside it "
            '(videollm_mod); "" keeps all tokens.',
        ),
        Check(check_specs),
    ] = "",
    pool: Annotated[
        int,
        typer.Option(
            "--pool", help="Side P of a block of P x P patches that become one token.", rich_help_panel=METHOD
        ),
    ] = 1,
    positions: Annotated[
        str, typer.Option("--positions", help="Position ids of the tokens: keep or renumber.", rich_help_panel=MODEL)
    ] = "keep",
    streams: Annotated[
        str,
        typer.Option(
            "--streams",
            metavar="PRESET",
            rich_help_panel=MODEL,
            help="How the language model also reads the tokens before the methods: slow_fast, crosslmm, vista_llama "
            'vamba or iva; "slow_fast(every=4)" in every 4th layer.',
        ),
    ] = "",
) -> None:
    """Train a video language model, composed of a video encoder and a language model, on conversations about videos.

    With --from, the run starts from a trained model, and --with replaces its methods. With --objective sevila, the
    model learns to answer "yes" if a frame suffices for a question, so that it can score frames; with marc, it learns
    from rewards to answer with few tokens. The model of --from is the fixed one that answers for comparison. With
    video_xl, the model is frozen, and the summary tokens of a memory are trained and written, for ask --with.

    Its parts are encoder, projector, compressor, inside (methods inside the language model), streams and llm, with a
    second encoder also encoder2 and projector2.
    The setting rates multiplies --lr for single parts; 0 freezes a part. Default settings are those of the Token
    Dynamics paper.
    """
    check_conversations(conversations)
    check_exists(start)
    if objective not in OBJECTIVES:
        raise ValueError(f"--objective must be {', '.join(OBJECTIVES[:-1])} or {OBJECTIVES[-1]}, got {objective!r}")
    if start is None and objective != "answers":
        raise ValueError(f"--objective {objective} requires --from, a model that train video-llm wrote")
    if start is None and (encoder is None or llm is None):
        raise ValueError("give --encoder and --llm, or --from a model that train video-llm wrote")
    if objective == "marc" and not spec:
        raise ValueError("--objective marc requires --with, the methods that leave few tokens")
    if objective == "video_xl" and not spec:
        raise ValueError("--objective video_xl requires --with, a memory with summary tokens: 'video_xl(ratio=8)'")
    from fewtokens.llm.composed import build_video_llm, load_video_llm
    from fewtokens.llm.layers.streams import parse
    from fewtokens.llm.load import trained_reading
    from fewtokens.llm.prompts import ComposedProcessor
    from fewtokens.train.inputs import folder_input, plain_input

    if streams:
        parse(streams)  # raises errors before a model is loaded
    if segment is not None and encoder2 is None:
        raise ValueError("--segment has no effect without --encoder2")

    def build() -> tuple[ComposedVideoLLM | MemoryReader, dict[str, Input]]:
        if start is not None:
            memory = objective == "video_xl"
            model = load_video_llm(start, spec=None if memory else spec or None, device="cpu", batch=256)
            values = {"--with": spec, "--objective": objective}
            sources = {"--from": folder_input(start)} | {name: plain_input(value) for name, value in values.items()}
            return (condense(start, model) if memory else model), sources
        assert encoder is not None and llm is not None
        options: dict[str, Any] = {"pool": pool, "positions": positions}
        if streams:  # runs without it, also of earlier versions, do not record it
            options["streams"] = streams
        if segment is not None:
            options["segment"] = segment
        model = build_video_llm(encoder, llm, spec=spec, encoder2=encoder2, **options, device="cpu", batch=256)
        values = {"--with": spec} | {f"--{name}": value for name, value in options.items()}
        sources = {"--encoder": folder_input(encoder), "--llm": folder_input(llm)}
        if encoder2 is not None:
            sources["--encoder2"] = folder_input(encoder2)
        return model, sources | {name: plain_input(value) for name, value in values.items()}

    def condense(folder: Path, model: ComposedVideoLLM) -> MemoryReader:
        from fewtokens.train.summary_tokens import MemoryReader

        size = trained_reading(folder)["read_size"]
        if conversations.size != size:
            raise ValueError(f"{folder} reads frames of {size} pixels; use --size {size}")
        processor = ComposedProcessor(folder, model, num_frames=conversations.frames, read_size=size)
        return MemoryReader(model, processor, spec)

    def refine(model: ComposedVideoLLM, reading: Reading) -> Objective:
        from fewtokens.train.refinement import SelfRefinement, TeacherReward

        assert start is not None
        processor = ComposedProcessor(start, model, num_frames=reading.frames, read_size=reading.size)
        other = load_video_llm(start, device=str(options.device or "auto"), batch=256)
        return (SelfRefinement if objective == "sevila" else TeacherReward)(other, processor)

    own = objective in ("sevila", "marc")
    # A memory is read without recomputed activations, and the model of --from has no learning rate.
    base: dict[str, Any] = {"checkpointing": False, "rates": {}} if objective == "video_xl" else {}
    train_language_model(build, conversations, options, base, refine if own else None)
