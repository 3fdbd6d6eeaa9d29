"""`fewtokens train token-dynamics`: trains a compressor in a trained video language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewtokens.cli.command import verb
from fewtokens.cli.errors import check_exists
from fewtokens.cli.options import METHOD, MODEL, TRAINING, Check, check_specs
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
    "fewtokens train token-dynamics --model run/model --data train.jsonl --out few",
    "fewtokens train token-dynamics --model run/model --data train.jsonl --whole --with "
    "\"token_dynamics(criterion='silhouette')\" --out few",
)
def token_dynamics(
    model: Annotated[
        Path, typer.Option("--model", help="Folder of a model that train video-llm wrote.", rich_help_panel=MODEL)
    ],
    conversations: ConversationOptions,
    options: LanguageTrainOptions,
    spec: Annotated[
        str,
        typer.Option(
            "--with",
            metavar="SPEC",
            help="Spec of the methods between encoder and language model.",
            rich_help_panel=METHOD,
        ),
        Check(check_specs),
    ] = "token_dynamics(keep=32)",
    whole: Annotated[
        bool,
        typer.Option(
            "--whole", help="Train all parts, instead of only methods, projector and streams.", rich_help_panel=TRAINING
        ),
    ] = False,
) -> None:
    """Train a compressor in a trained video language model."""
    check_conversations(conversations)
    check_exists(model)
    from fewtokens.llm.composed import load_video_llm
    from fewtokens.train.inputs import folder_input, plain_input
    from fewtokens.train.video_llm import COMPRESSOR_ONLY

    base: dict[str, Any] = {} if whole else {"rates": COMPRESSOR_ONLY, "lr": 1e-4}

    def build() -> tuple[ComposedVideoLLM, dict[str, Input]]:
        inputs = {"--model": folder_input(model), "--with": plain_input(spec)}
        return load_video_llm(model, spec=spec, device="cpu"), inputs

    train_language_model(build, conversations, options, base)
