"""`fewtokens cost`: operations, parameters, memory and time of a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fewtokens.cli.command import Mode, verb
from fewtokens.cli.console import out
from fewtokens.cli.options import (
    INPUT,
    METHOD,
    MODEL,
    RUN,
    Check,
    DeviceOption,
    JsonOption,
    check_network,
    check_spec_lists,
    names_of,
)
from fewtokens.cli.tables import print_json, table
from fewtokens.core.keys import heading


@dataclass(frozen=True)
class LanguageOptions:
    """Cost of few tokens in a language model."""

    specs: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="SPEC",
            help="Specs to count in a language model, instead of networks; comma-separated or repeated.",
            rich_help_panel=METHOD,
        ),
        Check(check_spec_lists("full")),
    ] = None
    grid: Annotated[
        str,
        typer.Option(
            "--grid",
            help="With --with: grid of visual tokens that the language model receives, frames x rows x columns. For "
            "Qwen2.5-VL: frames / 2, then rows and columns of patches / 2 (after the 2x2 merge). ask --json reports "
            "the product as cells; few.last.tokens[0].grid is the grid.",
            rich_help_panel=METHOD,
        ),
    ] = "32x27x27"
    llm: Annotated[
        str,
        typer.Option(
            "--llm",
            help="With --with: qwen2-0.5b, qwen2.5-3b, qwen2-7b, qwen2.5-7b, or a folder with a config.json.",
            rich_help_panel=METHOD,
        ),
    ] = "qwen2-0.5b"
    text: Annotated[
        int,
        typer.Option("--text", help="With --with: number of text tokens in the prompt.", rich_help_panel=METHOD),
    ] = 40
    pooled: Annotated[
        bool,
        typer.Option(
            "--pooled", help="With --with: mark the grid as already pooled (TokDense).", rich_help_panel=METHOD
        ),
    ] = False
    accuracy: Annotated[
        list[float] | None,
        typer.Option(
            "--accuracy",
            help="With --with: measured accuracy in %, for TokDense; repeat for each SPEC.",
            rich_help_panel=METHOD,
        ),
    ] = None


@dataclass(frozen=True)
class NetworkOptions:
    """The network and its input."""

    size: Annotated[
        int | None,
        typer.Option(
            "--size", help="Side of the frames, in pixels. Default: that of the network.", rich_help_panel=INPUT
        ),
    ] = None
    frames: Annotated[
        int | None,
        typer.Option("--frames", help="Frames per clip. Default: those of the network.", rich_help_panel=INPUT),
    ] = None
    classes: Annotated[int | None, typer.Option("--classes", help="Number of classes.", rich_help_panel=MODEL)] = None


@dataclass(frozen=True)
class TimeOptions:
    """Whether and how time is measured."""

    timed: Annotated[
        bool, typer.Option("--time", help="Also measure the time of a forward pass.", rich_help_panel=RUN)
    ] = False
    batch: Annotated[int, typer.Option("--batch", help="With --time: clips per batch.", rich_help_panel=RUN)] = 1
    repeats: Annotated[
        int, typer.Option("--repeats", help="With --time: timed passes, after two for warm-up.", rich_help_panel=RUN)
    ] = 7
    device: DeviceOption = "auto"


@verb(
    "fewtokens cost tokenlearner_vit_l16_16at12 --size 512",
    "fewtokens cost vit_s16 tokenlearner_vit_s16_8at6 --size 224 --time",
    'fewtokens cost --with "token_dynamics(keep=32)" --grid 32x27x27 --llm qwen2-0.5b --accuracy 57.46',
    modes=(
        Mode(
            "few tokens", lambda values: bool(values["specs"]), names_of(NetworkOptions, TimeOptions),
            "have no effect with --with",
        ),
        Mode(
            "networks", lambda values: not values["specs"], names_of(LanguageOptions, without=("specs",)),
            "require --with SPEC",
        ),
        Mode(
            "networks without --time", lambda values: not values["specs"] and not values["timed"],
            names_of(TimeOptions, without=("timed",)), "require --time",
        ),
    ),
)  # fmt: skip
def cost(
    network: NetworkOptions,
    few: LanguageOptions,
    time: TimeOptions,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="Names of networks, or folders of saved ones."),
        Check(lambda names: [check_network(name) for name in names]),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Count the cost of a network for one image or clip, or of few tokens in a language model.

    GFLOPs of networks follow the convention of TokenLearner: (2 MACs + elementwise operations) / 2; GMACs are
    multiply-accumulates. With --with, GFLOPs are 2 per multiply-accumulate.
    --time runs the network with random weights; counting alone allocates no memory.
    """
    if few.specs:
        if names:
            raise ValueError("give networks or --with SPEC, not both")
        _print_token_costs(few, as_json)
        return
    if not names:
        raise ValueError("give a network, such as vit_s16, or methods, such as --with 'tome(keep=0.1)'")
    import torch

    from fewtokens import networks as models
    from fewtokens.encoders import pick_device
    from fewtokens.profiling.latency import latency
    from fewtokens.profiling.memory import activation_bytes
    from fewtokens.profiling.operations import count_operations, count_parameters, count_torch_macs

    if time.batch < 1 or time.repeats < 1:
        raise ValueError(f"--batch and --repeats must be at least 1, got {time.batch} and {time.repeats}")
    rows: list[dict[str, Any]] = []
    for name in names:
        model, shape = _build(name, network, torch.device("meta"))
        clip = torch.empty(1, *shape, device="meta")
        operations = count_operations(model, clip)
        row: dict[str, Any] = {
            "name": name,
            "input": "x".join(str(shape[axis]) for axis in (0, 2, 3)),
            "gflops_paper": operations.giga("paper"),
            "gmacs": count_torch_macs(model, clip),
            "parameters": count_parameters(model),
            "activations_mib": activation_bytes(model.train(), clip) / 2**20,
        }
        if models.preset_kind(name) == "x2plus1d":
            row["gflops_paper_video"] = operations.giga("paper_video")
        if operations.unknown:
            row["uncounted"] = list(operations.unknown)
        if time.timed:
            device = pick_device(time.device)
            model, _ = _build(name, network, device)
            timing = latency(model.eval(), torch.rand(time.batch, *shape, device=device), repeats=time.repeats)
            row |= {
                "latency_ms": timing.median, "latency_ms_low": timing.low, "latency_ms_high": timing.high,
                "batch": time.batch, "device": str(device),
            }  # fmt: skip
        rows.append(row)
    if as_json:
        print_json(rows)
        return
    # One column per network: names are long, and there are more numbers than networks.
    keys = list(dict.fromkeys(key for row in rows for key in row if key != "name"))
    out.print(
        table("", [{"": heading(key)} | {row["name"]: _format(key, row.get(key)) for row in rows} for key in keys])
    )
    out.print(
        "For one image or clip. GFLOPs (paper): (2 MACs + elementwise) / 2, as in TokenLearner's tables, so about 1 "
        "per multiply-accumulate (--with counts 2); activations: float32 values kept for the backward pass.",
        style="dim",
    )


def _print_token_costs(options: LanguageOptions, as_json: bool) -> None:
    from fewtokens.core.grid import Grid
    from fewtokens.core.syntax import split_specs
    from fewtokens.evaluation.budget import language_model, token_cost

    specs, text, accuracies = split_specs(",".join(options.specs or [])), options.text, options.accuracy or []
    sides = options.grid.lower().split("x")
    if len(sides) != 3 or not all(side.isdecimal() and int(side) for side in sides):
        raise ValueError(f"--grid must be frames x rows x columns, such as 32x27x27, got {options.grid!r}")
    if text < 0 or not all(0 <= value <= 100 for value in accuracies):
        raise ValueError(f"--text must be at least 0 and --accuracy from 0 to 100, got {text} and {accuracies}")
    if accuracies and len(accuracies) != len(specs):
        raise ValueError(f"--accuracy must be given once per SPEC, got {len(accuracies)} for {len(specs)}")
    cells, model = Grid(int(sides[0]), int(sides[1]), int(sides[2])), language_model(options.llm)
    accuracy_of = dict(zip(specs, accuracies, strict=False))
    costs = [
        token_cost(spec, cells, model, text=text, pooled=options.pooled, accuracy=accuracy_of.get(spec))
        for spec in dict.fromkeys(["full", *specs])
    ]
    if as_json:
        print_json([cost.row() for cost in costs])
        return
    columns = {
        "tokens": lambda c: str(c.tokens),
        "cells": lambda c: str(c.cells),
        "retention": lambda c: f"{100 * c.retention:.3f} %",
        "frames": lambda c: str(c.frames),
        "pooled": lambda c: "yes" if c.pooled else "no",
        "module": lambda c: c.module,
        "module, GFLOPs": lambda c: f"{c.module_gflops:.2f}",
        "LLM": lambda c: c.llm,
        "prefill, GFLOPs": lambda c: f"{c.prefill_gflops:.1f}",
        "accuracy, %": lambda c: "-" if c.accuracy is None else f"{c.accuracy:.2f}",
        "TokDense": lambda c: "-" if c.tokdense is None else f"{c.tokdense:.3f}",
    }
    out.print(table("", [{"": name} | {cost.spec: column(cost) for cost in costs} for name, column in columns.items()]))
    out.print(
        f"One video and {text} text tokens in {model.name}. GFLOPs: 2 per multiply-accumulate. Module and LLM: "
        "complexities from the table of Token Dynamics, which excludes iterations; GFLOPs are counted while it runs. "
        "TokDense rewards keeping almost nothing: read it together with the accuracy.",
        style="dim",
    )


def _build(name: str, options: NetworkOptions, device: Any) -> tuple[Any, list[int]]:
    """Builds a network with random weights on a device; also returns the shape [T,3,H,W] of its input clip."""
    import torch

    from fewtokens import networks as models

    changes: dict[str, Any] = {} if options.classes is None else {"num_classes": options.classes}
    if Path(name).is_dir():
        saved = models.read_config(name)
        if saved["fewtokens_model"] not in models.KINDS:
            raise ValueError(
                f"{name}: contains a {saved['fewtokens_model']}; costs can be counted for {', '.join(models.KINDS)}"
            )
        kind, settings = models.KINDS[saved["fewtokens_model"]], saved["config"]
    else:
        kind, settings = models.preset(name)
    if options.frames is not None:
        changes["num_frames"] = options.frames
    if options.size is not None and kind is models.VisionTransformer:
        changes["image_size"] = (options.size, options.size)
    config = models.make_config(kind, settings | changes, name)
    with torch.device(device):
        network = kind(config)
    side = config.image_size if kind is models.VisionTransformer else (options.size or 224, options.size or 224)
    return network, [config.num_frames, 3, *side]


def _format(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key == "parameters":
        return f"{value / 1e6:.2f} M"
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, float):
        return f"{value:.2f}" if value >= 1 else f"{value:.4f}"
    return str(value)
