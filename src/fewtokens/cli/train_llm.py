"""`fewtokens train video-llm` and `fewtokens train token-dynamics`: language models that watch videos."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.common import (
    JsonOption,
    SpecOption,
    log,
    out,
    print_json,
    progress,
    run_values,
    table,
    tell_run,
    verb,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from fewtokens.llm.composed import ComposedVideoLLM
    from fewtokens.train.inputs import Input

app = typer.Typer(add_completion=False)

DataOption = Annotated[Path, typer.Option("--data", help="Conversations, .jsonl or .json (LLaVA-Video-178K's layout).")]
OutOption = Annotated[Path, typer.Option("--out", help="The run's folder; a run that is there continues.")]
VideosOption = Annotated[Path | None, typer.Option("--videos", help="Where the videos lie, if not beside --data.")]
ValOption = Annotated[Path | None, typer.Option("--val", help="Conversations to test on: % of exact answers.")]
FramesOption = Annotated[int, typer.Option("--frames", help="Frames of a video, spread evenly.")]
SizeOption = Annotated[int, typer.Option("--size", help="Side of the frames, in pixels.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any setting, such as rates=encoder=0.2 (--dry-run lists them)."),
]
LoraOption = Annotated[int | None, typer.Option("--lora", metavar="RANK", help="Adapters instead of the whole LM.")]
EpochsOption = Annotated[float | None, typer.Option("--epochs", help="Passes over the data.")]
BatchOption = Annotated[int | None, typer.Option("--batch", help="Conversations of one step, over all processes.")]
LrOption = Annotated[float | None, typer.Option("--lr", help="Learning rate.")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Of everything drawn.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Start over in a folder that holds a run.")]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Show settings and data, and train nothing.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, to stay there although there is a GPU.")]


@app.command(
    "video-llm",
    epilog="Examples:  [bold]fewtokens train video-llm --data train.jsonl --encoder facebook/dinov2-small "
    '--llm Qwen/Qwen2.5-0.5B-Instruct --with "token_dynamics(keep=32)" --out run[/bold]   |   '
    "[bold]torchrun --nproc-per-node 4 -m fewtokens train video-llm --data train.jsonl --encoder dinov2/ --llm qwen/ "
    "--lora 16 --set rates=encoder=0 --out run[/bold]",
)
@verb
def video_llm(
    data: DataOption,
    folder: OutOption,
    encoder: Annotated[str, typer.Option("--encoder", help="A ViT: folder or hub id.")],
    llm: Annotated[str, typer.Option("--llm", help="A causal language model: folder, .gguf file or hub id.")],
    spec: Annotated[
        str, typer.Option("--with", metavar="SPEC", help="Methods between the two; all tokens if none.")
    ] = "",
    pool: Annotated[int, typer.Option("--pool", help="Patches along a side that become one token.")] = 1,
    positions: Annotated[str, typer.Option("--positions", help="keep or renumber.")] = "keep",
    videos: VideosOption = None,
    validation: ValOption = None,
    frames: FramesOption = 16,
    size: SizeOption = 224,
    lora: LoraOption = None,
    settings: SetOption = None,
    epochs: EpochsOption = None,
    batch: BatchOption = None,
    lr: LrOption = None,
    seed: SeedOption = None,
    fresh: FreshOption = False,
    dry_run: DryOption = False,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a video encoder and a language model together and train them on conversations about videos.

    The parts are named encoder, projector, compressor and llm; rates say by how much each learns slower than --lr, 0
    freezes it. The settings begin as those of the Token Dynamics paper.
    """
    from fewtokens.llm.composed import build_video_llm
    from fewtokens.train.inputs import folder_input, plain_input

    _tell_first(data)
    flags = {"epochs": epochs, "batch": batch, "lr": lr, "seed": seed}
    where = Where(data, folder, videos, validation, frames, size)

    def build() -> tuple[ComposedVideoLLM, dict[str, Input]]:
        model = build_video_llm(encoder, llm, spec=spec, pool=pool, positions=positions, device="cpu", batch=256)
        made = {"--with": spec, "--pool": pool, "--positions": positions}
        made_from = {"--encoder": folder_input(encoder), "--llm": folder_input(llm)}
        return model, made_from | {name: plain_input(value) for name, value in made.items()}

    _train(build, where, settings, flags, {}, lora=lora, fresh=fresh, dry_run=dry_run, device=device, as_json=as_json)


@app.command(
    "token-dynamics",
    epilog="Examples:  [bold]fewtokens train token-dynamics --model run/model --data train.jsonl --out few[/bold]"
    "   |   [bold]fewtokens train token-dynamics --model run/model --data train.jsonl --whole --with "
    "\"token_dynamics(criterion='silhouette')\" --out few[/bold]",
)
@verb
def token_dynamics(
    model: Annotated[Path, typer.Option("--model", help="A folder that train video-llm saved.")],
    data: DataOption,
    folder: OutOption,
    spec: SpecOption = "token_dynamics(keep=32)",
    whole: Annotated[
        bool, typer.Option("--whole", help="Train all parts, not the methods and projector alone.")
    ] = False,
    videos: VideosOption = None,
    validation: ValOption = None,
    frames: FramesOption = 16,
    size: SizeOption = 224,
    lora: LoraOption = None,
    settings: SetOption = None,
    epochs: EpochsOption = None,
    batch: BatchOption = None,
    lr: LrOption = None,
    seed: SeedOption = None,
    fresh: FreshOption = False,
    dry_run: DryOption = False,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a compressor in a video language model that is trained already."""
    from fewtokens.llm.composed import load_video_llm
    from fewtokens.train.inputs import folder_input, plain_input
    from fewtokens.train.video_llm import COMPRESSOR_ONLY

    _tell_first(data)
    flags = {"epochs": epochs, "batch": batch, "lr": lr, "seed": seed}
    base: dict[str, Any] = {} if whole else {"rates": COMPRESSOR_ONLY, "lr": 1e-4}
    where = Where(data, folder, videos, validation, frames, size)

    def build() -> tuple[ComposedVideoLLM, dict[str, Input]]:
        return load_video_llm(model, spec=spec, device="cpu"), {
            "--model": folder_input(model),
            "--with": plain_input(spec),
        }

    _train(build, where, settings, flags, base, lora=lora, fresh=fresh, dry_run=dry_run, device=device, as_json=as_json)


@dataclass(frozen=True)
class Where:
    """What to train on, how it is read, and where the run goes."""

    data: Path
    folder: Path
    videos: Path | None
    validation: Path | None
    frames: int
    size: int


def _tell_first(data: Path) -> None:
    """Raises what is wrong with the data before a model is loaded."""
    if not data.is_file():
        raise ValueError(f"{data}: no such file; conversations are a .jsonl or .json in LLaVA-Video-178K's layout")


def _train(
    build: Callable[[], tuple[ComposedVideoLLM, dict[str, Input]]],
    where: Where,
    texts: list[str] | None,
    flags: dict[str, Any],
    base: dict[str, Any],
    *,
    lora: int | None,
    fresh: bool,
    dry_run: bool,
    device: str | None,
    as_json: bool,
) -> None:
    """Trains what `build` draws with the seed of the run."""
    import torch
    from accelerate import PartialState

    from fewtokens.data.qa_sets import conversations
    from fewtokens.train.inputs import plain_input
    from fewtokens.train.settings import Settings, parse_setting
    from fewtokens.train.video_llm import (
        PAPER,
        Conversations,
        Reading,
        add_lora,
        conversation_inputs,
        evaluator,
        train_video_llm,
    )

    asked = dict(parse_setting(text) for text in texts or ())
    if unknown := set(asked) - {each.name for each in fields(Settings)}:
        raise ValueError(f"{', '.join(sorted(unknown))} is for classification; this loop takes other settings")
    known = {name: value for name, value in flags.items() if value is not None}
    small: dict[str, Any] = {} if torch.cuda.is_available() and device != "cpu" else {"precision": "no"}
    wanted: dict[str, Any] = PAPER | {"workers": 2} | small | base | asked | known
    chosen = Settings(**wanted)
    main = PartialState(cpu=device == "cpu").is_main_process
    folder = where.folder
    training = list(conversations(where.data, where.videos))
    test = [] if where.validation is None else list(conversations(where.validation, where.videos))
    torch.manual_seed(chosen.seed)
    model, inputs = build()
    if lora is not None:
        add_lora(model, lora)
    reading = Reading(where.frames, where.size)
    inputs |= {**conversation_inputs(training, reading), "--lora": plain_input(lora)}
    if test:
        inputs["test data"] = conversation_inputs(test, reading)["data"]
    total = chosen.total(len(training))
    if dry_run:
        if main:
            _show(model, asdict(chosen), total, len(training), len(test), as_json)
        return
    with progress("training", total) as advance:

        def step(done: int, in_all: int, numbers: dict[str, float]) -> None:
            shown = "  ".join(f"{name} {value:.3g}" for name, value in numbers.items() if name in ("loss", "exact"))
            advance(done, in_all, f"step {done}  {shown}")

        report = train_video_llm(
            model,
            Conversations(training, reading, model.tokenizer),
            chosen,
            folder,
            evaluate=evaluator(test, reading) if test else None,
            inputs=inputs,
            resume=not fresh,
            progress=step if main else None,
            device=device,
            trained={"frames": where.frames, "size": where.size, "seed": chosen.seed},
        )
    if not main:
        return
    loss = next((line["loss"] for line in reversed(report.metrics) if "loss" in line), None)
    if as_json:
        print_json(run_values(folder, report) | {"loss": loss})
        return
    tell_run(report, table("Test", [{"score": name, "%": value} for name, value in report.scores.items()]))
    if loss is not None:
        out.print(f"loss {loss:.3f}")
    if report.broken:
        log.print(f"[yellow]{len(report.broken)} videos could not be read[/yellow], listed in {folder / 'broken.txt'}")
    out.print(f"[bold]Model[/bold]  {escape(str(folder / 'model'))}", highlight=False)


def _show(model: Any, settings: dict[str, Any], total: int, training: int, test: int, as_json: bool) -> None:
    parts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = name.partition(".")[0]
        parts[part] = parts.get(part, 0) + parameter.numel()
    if as_json:
        print_json({"parameters": parts, "steps": total, "train": training, "test": test, "settings": settings})
        return
    out.print(table("", [{"setting": name, "value": str(value)} for name, value in settings.items()]))
    told = ", ".join(f"{part} {count / 1e6:.2f} M" for part, count in parts.items())
    out.print(f"{training} conversations, {test} to test on, {total} steps; parameters: {told}", highlight=False)
