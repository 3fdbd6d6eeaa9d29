"""`fewtokens train video-llm`: trains a video language model from a video encoder and a language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewtokens.cli.command import verb
from fewtokens.cli.options import ENCODER, METHOD, MODEL, Check, check_model, check_specs, find_model
from fewtokens.cli.train.language_model import (
    ConversationOptions,
    LanguageTrainOptions,
    check_conversations,
    train_language_model,
)

if TYPE_CHECKING:
    from fewtokens.llm.composed import ComposedVideoLLM
    from fewtokens.train.inputs import Input


@verb(
    "fewtokens train video-llm --data train.jsonl --encoder facebook/dinov2-small --llm Qwen/Qwen2.5-0.5B-Instruct "
    '--with "token_dynamics(keep=32)" --out run',
    "fewtokens train video-llm --data train.jsonl --encoder dinov2/ --llm qwen/ --lora 16 --set rates=encoder=0 "
    "--out run",
    'fewtokens train video-llm --data train.jsonl --encoder dinov2/ --llm qwen/ --with "mean_pool(keep=32)" '
    "--streams slow_fast --out run",
    "fewtokens train video-llm --data train.jsonl --encoder clip/ --encoder2 vivit/ --llm qwen/ "
    '--with "spatial_pool(stride=2)" --out run',
)
def video_llm(
    conversations: ConversationOptions,
    encoder: Annotated[
        str,
        typer.Option("--encoder", help="Video encoder, a ViT: folder or hub id.", rich_help_panel=ENCODER),
        Check(check_model, find_model),
    ],
    llm: Annotated[
        str,
        typer.Option("--llm", help="Causal language model: folder, .gguf file or hub id.", rich_help_panel=MODEL),
        Check(check_model, find_model),
    ],
    options: LanguageTrainOptions,
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
            'or vamba; "slow_fast(every=4)" in every 4th layer.',
        ),
    ] = "",
) -> None:
    """Train a video language model, composed of a video encoder and a language model, on conversations about videos.

    Its parts are encoder, projector, compressor, inside (methods inside the language model), streams and llm, with a
    second encoder also encoder2 and projector2.
    The setting rates multiplies --lr for single parts; 0 freezes a part. Default settings are those of the Token
    Dynamics paper.
    """
    check_conversations(conversations)
    from fewtokens.llm.composed import build_video_llm
    from fewtokens.llm.layers.streams import parse
    from fewtokens.train.inputs import folder_input, plain_input

    if streams:
        parse(streams)  # raises errors before a model is loaded
    if segment is not None and encoder2 is None:
        raise ValueError("--segment has no effect without --encoder2")

    def build() -> tuple[ComposedVideoLLM, dict[str, Input]]:
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

    train_language_model(build, conversations, options, {})
