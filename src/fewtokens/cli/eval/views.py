"""Shared by `eval classify` and the probes: labeled data, its views, the table of scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.console import log, out
from fewtokens.cli.options import INPUT, RUN, DeviceOption, RootOption
from fewtokens.cli.tables import print_json, table
from fewtokens.core.keys import heading


@dataclass(frozen=True)
class LabeledOptions:
    """Labeled images or videos."""

    data: Annotated[
        Path,
        typer.Option(
            "--data", help="Labeled data: a folder with one folder per class, a list, or tars.", rich_help_panel=INPUT
        ),
    ]
    validation: Annotated[
        Path | None, typer.Option("--val", help="Test set, in the format of --data.", rich_help_panel=INPUT)
    ] = None
    root: RootOption = None


@dataclass(frozen=True)
class ViewOptions:
    """The views of an image or video to score."""

    size: Annotated[
        int | None,
        typer.Option(
            "--size",
            help="Side of the crops, in pixels. Default: as in training, or 224.",
            rich_help_panel=INPUT,
        ),
    ] = None
    resize: Annotated[
        int,
        typer.Option(
            "--resize", help="Short side before the crop, in pixels; 0: the crop size.", rich_help_panel=INPUT
        ),
    ] = 0
    frames: Annotated[
        int | None,
        typer.Option("--frames", help="Frames per clip. Default: as in training, or 1.", rich_help_panel=INPUT),
    ] = None
    stride: Annotated[
        int | None,
        typer.Option(
            "--stride",
            help="Distance of the frames of a clip, in frames of the video. Default: as in training, or 1.",
            rich_help_panel=INPUT,
        ),
    ] = None
    fps: Annotated[
        float | None, typer.Option("--fps", help="Frames per second, instead of --stride.", rich_help_panel=INPUT)
    ] = None
    clips: Annotated[int, typer.Option("--clips", help="Clips per video.", rich_help_panel=INPUT)] = 1
    crops: Annotated[int, typer.Option("--crops", help="Crops per clip.", rich_help_panel=INPUT)] = 1


@dataclass(frozen=True)
class LoadOptions:
    """How samples are loaded."""

    batch: Annotated[
        int, typer.Option("--batch", help="Clips per forward pass; lower it to save memory.", rich_help_panel=RUN)
    ] = 64
    workers: Annotated[
        int,
        typer.Option(
            "--workers", help="Number of data-loading processes; 0: load in the main process.", rich_help_panel=RUN
        ),
    ] = 0
    device: DeviceOption = "auto"


@dataclass(frozen=True)
class Views:
    """The views of an item: arguments of `fewtokens.data.Transform` and `fewtokens.data.View`."""

    transform: dict[str, Any]
    clip: dict[str, Any]
    clips: int
    crops: int


def make_views(options: ViewOptions, trained: dict[str, Any]) -> Views:
    """Returns the views that the options specify. Default: those that a network was trained with."""
    if options.stride is not None and options.fps is not None:
        raise ValueError("give --stride or --fps, not both")
    clip: dict[str, Any] = {"frames": options.frames or trained.get("frames", 1)}
    if options.fps is not None or (options.stride is None and trained.get("fps")):
        clip["fps"] = options.fps or trained["fps"]
    else:
        clip["stride"] = options.stride or trained.get("stride", 1)
    side = options.size or trained.get("size", 224)
    resize = options.resize or (trained.get("resize", 0) if side == trained.get("size") else 0)
    return Views({"size": side, "resize": resize}, clip, options.clips, options.crops)


def clip_data(listing: Any, views: Views) -> Any:
    """Returns the items of a listing in these views."""
    from fewtokens.data import ClipData, Transform, View

    view = View(**views.clip, clips=views.clips, crops=views.crops)
    return ClipData(listing, Transform(**views.transform), view, training=False)


def print_scores(
    task: str, model: str, views: Views, more: dict[str, Any], scores: dict[str, Any], broken: list[str], as_json: bool
) -> None:
    """Prints scores and their protocol."""
    protocol = {
        "task": task, "model": model, **views.transform, **views.clip, "clips": views.clips, "crops": views.crops,
        **more,
    }  # fmt: skip
    if as_json:
        print_json({"protocol": protocol, "broken": broken, **scores})
        return
    out.print(f"[bold]{task}[/bold]  {escape(model)}", highlight=False)
    out.print(table("", [{"score": heading(name), "value": value} for name, value in scores.items()]))
    out.print(
        "  ".join(f"{name}={value}" for name, value in list(protocol.items())[2:]), style="dim", highlight=False,
        markup=False,
    )  # fmt: skip
    if broken:
        log.print(f"[yellow]{len(broken)} files could not be read[/yellow], the first: {escape(broken[0])}")
