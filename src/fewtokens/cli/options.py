"""Options that several verbs share, in groups; an option name has the same meaning in every verb."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from fewtokens.core.checks import check_device, check_dtype, check_engine, check_format, check_near, check_scorer
from fewtokens.core.hub import check_hub_id, check_on_hub
from fewtokens.core.network_names import parse_name

# Panels of --help, in order.
PANELS = ("Input", "Encoder", "Model", "Method", "Protocol", "Training", "Output", "Run")
INPUT, ENCODER, MODEL, METHOD, PROTOCOL, TRAINING, OUTPUT, RUN = PANELS


@dataclass(frozen=True)
class Check:
    """In the annotation of an option: raises ValueError for a wrong value, before the verb imports torch.

    Attributes:
        function: receives the value.
        find: raises ValueError if what the value names does not exist. It may search the hub, so it is called only
            when the verb runs, after all checks.
    """

    function: Callable[[Any], object]
    find: Callable[[Any], object] | None = None


def check_specs(specs: str | Sequence[str]) -> None:
    """Raises ValueError if a spec cannot be parsed, or a name in it is unknown; values need the method and torch."""
    from fewtokens.core.syntax import read_links

    for spec in [specs] if isinstance(specs, str) else specs:
        if spec.strip():
            read_links(spec)


def check_spec_lists(keyword: str) -> Callable[[Sequence[str]], None]:
    """Returns the check of comma-separated specs, among which a keyword of the verb may be."""

    def check(texts: Sequence[str]) -> None:
        from fewtokens.core.syntax import split_specs

        check_specs([spec for spec in split_specs(",".join(texts)) if spec != keyword])

    return check


def check_selector(spec: str) -> None:
    """Raises ValueError if a spec is not that of one method that selects frames."""
    from fewtokens.core.syntax import SELECTION_KIND, external, folder, read_links

    names = [link.name for link in read_links(spec)]
    if len(names) != 1 or names[0] not in (*folder(SELECTION_KIND), *external()):
        raise ValueError(
            f"--select must be one method of the stage frames (fewtokens methods --stage frames), got {spec!r}"
        )


def check_model(name: str) -> None:
    """Raises ValueError if a model is neither a file, nor a folder, nor the name of one on the hub."""
    if not Path(name).exists():
        check_hub_id(name)


def find_model(name: str) -> None:
    """Raises ValueError if a model, other than the encoder patches, is neither a file, nor a folder, nor on the hub."""
    if name != "patches" and not Path(name).exists():
        check_on_hub(name)


def check_network(name: str) -> None:
    """Raises ValueError if a network is neither a folder nor a name that `fewtokens models` describes."""
    if not Path(name).is_dir():
        parse_name(name)


def check_new_tokenizer(name: str) -> None:
    """Raises ValueError if this is neither a preset of tokenizers nor a spec."""
    from fewtokens.core.tokenizer_syntax import check_preset, check_spec

    if ">" in name:
        check_spec(name)
    else:
        check_preset(name)


def _is_tokenizer_id(name: str) -> bool:
    """Whether a tokenizer can only be on the hub."""
    return ">" not in name and ("/" in name or name.startswith(".")) and not Path(name).exists()


def check_tokenizer(name: str) -> None:
    """Raises ValueError if a tokenizer is neither a path, a spec, a preset nor the name of a folder on the hub."""
    if _is_tokenizer_id(name):
        check_hub_id(name)
    elif ">" in name or not Path(name).exists():
        check_new_tokenizer(name)


def find_tokenizer(name: str) -> None:
    """Raises ValueError if a tokenizer that can only be on the hub is not."""
    if _is_tokenizer_id(name):
        check_on_hub(name)


VideosArgument = Annotated[list[Path], typer.Argument(metavar="VIDEO", help="Videos, images or folders of images.")]
FpsOption = Annotated[
    float | None, typer.Option("--fps", help="Frames per second, instead of --frames.", rich_help_panel=INPUT)
]
SizeOption = Annotated[
    int, typer.Option("--size", min=1, help="Short side of the frames, in pixels.", rich_help_panel=INPUT)
]
RootOption = Annotated[
    Path | None, typer.Option("--root", help="Base folder of the relative paths in a list.", rich_help_panel=INPUT)
]
DtypeOption = Annotated[
    str | None,
    typer.Option("--dtype", help="float32, float16 or bfloat16. Default: float32.", rich_help_panel=ENCODER),
    Check(check_dtype),
]
BatchOption = Annotated[
    int,
    typer.Option(
        "--batch", help="Frames per forward pass of the encoder; lower it to save memory.", rich_help_panel=ENCODER
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option("--device", help="auto (a GPU if available), cpu, cuda or mps.", rich_help_panel=RUN),
    Check(check_device),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Random seed.", rich_help_panel=RUN)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print results as JSON.", rich_help_panel=OUTPUT)]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Overwrite existing files.", rich_help_panel=OUTPUT)]
KeepOption = Annotated[
    str | None,
    typer.Option(
        "--keep",
        metavar="K",
        help="Budget of methods whose spec sets none: 0.1 is a fraction, 32 a count, 8/frame a count per frame; 1 is "
        "one token, 1.0 all tokens.",
        rich_help_panel=METHOD,
    ),
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Override a setting of the protocol; can be repeated.",
        rich_help_panel=PROTOCOL,
    ),
]


@dataclass(frozen=True)
class ReadOptions:
    """Which frames of a video are read, and at which size; also saved in token files ("reading")."""

    frames: Annotated[
        int | None,
        typer.Option(
            "--frames",
            min=1,
            help="Number of frames, spread evenly over the video. Default: 16.",
            rich_help_panel=INPUT,
        ),
    ] = None
    fps: FpsOption = None
    size: SizeOption = 224
    start: Annotated[float, typer.Option("--start", help="Start time, in seconds.", rich_help_panel=INPUT)] = 0.0
    end: Annotated[
        float | None,
        typer.Option("--end", help="End time, in seconds. Default: the end of the video.", rich_help_panel=INPUT),
    ] = None
    video_stream: Annotated[
        int | None,
        typer.Option("--video-stream", help="Index of the video stream, in files with several.", rich_help_panel=INPUT),
    ] = None
    allow_truncated: Annotated[
        bool,
        typer.Option(
            "--allow-truncated", help="Use the frames of a truncated file that can be decoded.", rich_help_panel=INPUT
        ),
    ] = False


@dataclass(frozen=True)
class SelectOptions:
    """Which frames are read, if a method selects them."""

    select: Annotated[
        str | None,
        typer.Option(
            "--select",
            metavar="SPEC",
            help='Method that selects the frames to read, such as "aks(keep=32)", instead of --frames.',
            rich_help_panel=INPUT,
        ),
        Check(check_selector),
    ] = None
    scorer: Annotated[
        str | None,
        typer.Option(
            "--scorer",
            help="Relevance of frames for --select: clip:FOLDER (CLIP or SigLIP, by the question), features (novelty), "
            "features:ENCODER or, in ask, model (whether the language model says that a frame answers the question).",
            rich_help_panel=INPUT,
        ),
        Check(check_scorer),
    ] = None
    near: Annotated[
        float,
        typer.Option(
            "--near",
            metavar="S",
            min=0,
            help="With --select: the thumbnail of the nearest keyframe stands for candidates within S seconds of it, "
            "which is faster. 0: their own.",
            rich_help_panel=INPUT,
        ),
        Check(check_near),
    ] = 0.0


@dataclass(frozen=True)
class EncoderOptions:
    """The encoder, which turns frames into tokens."""

    encoder: Annotated[
        str,
        typer.Option(
            "--encoder",
            help="patches (pixels, no weights), a folder, or a hub id such as facebook/dinov2-small.",
            rich_help_panel=ENCODER,
        ),
        Check(check_model, find_model),
    ] = "patches"
    dtype: DtypeOption = None
    batch: BatchOption = 32


@dataclass(frozen=True)
class MethodOptions:
    """The methods, which reduce tokens."""

    spec: Annotated[
        str,
        typer.Option(
            "--with",
            metavar="SPEC",
            help='Spec of the methods, such as "rlt | tome(keep=0.1)"; "" keeps all tokens.',
            rich_help_panel=METHOD,
        ),
        Check(check_specs),
    ] = ""
    keep: KeepOption = None


@dataclass(frozen=True)
class RunOptions:
    """The device and the random seed."""

    device: DeviceOption = "auto"
    seed: SeedOption = 0


FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="safetensors (a file per video), shards (of safetensors), webdataset, parquet or hf (Hugging Face "
        "datasets). Default: safetensors.",
        rich_help_panel=OUTPUT,
    ),
    Check(check_format),
]


@dataclass(frozen=True)
class JobOptions:
    """How a job, a run over many videos, is done."""

    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            help="local (processes of this machine) or ray (a cluster). Default: local for a list, folder or pattern "
            "of tokenize and encode; otherwise no job.",
            rich_help_panel=RUN,
        ),
        Check(check_engine),
    ] = None
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            help="With --engine ray: address of a cluster. Default: start one on this machine.",
            rich_help_panel=RUN,
        ),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Processes of a job. Default: one per GPU or core.", rich_help_panel=RUN),
    ] = None
    retry: Annotated[
        bool, typer.Option("--retry", help="Try videos again that failed in an earlier run.", rich_help_panel=RUN)
    ] = False
    per_shard: Annotated[
        int | None,
        typer.Option(
            "--per-shard",
            min=1,
            help="Videos per shard of a job. Default: 100; fewer if a job of few videos writes no shards of tokens.",
            rich_help_panel=OUTPUT,
        ),
    ] = None


def names_of(*groups: type, without: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Returns the parameter names of groups of options."""
    return tuple(field.name for group in groups for field in fields(group) if field.name not in without)
