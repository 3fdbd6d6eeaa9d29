"""`fewtokens cost`: operations, parameters, memory and time of a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fewtokens.cli.common import DeviceOption, JsonOption, out, print_json, table, verb

app = typer.Typer()


@app.command(
    epilog="Examples:  [bold]fewtokens cost tokenlearner_vit_l16_16at12 --size 512[/bold]   |   "
    "[bold]fewtokens cost vit_s16 tokenlearner_vit_s16_8at6 --size 224 --time[/bold]",
)
@verb
def cost(
    names: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Names, or folders of saved models.")],
    size: Annotated[
        int | None, typer.Option("--size", help="Side of the frames in pixels; its own if not said.")
    ] = None,
    frames: Annotated[int | None, typer.Option("--frames", help="Frames of a clip; its own if not said.")] = None,
    classes: Annotated[int | None, typer.Option("--classes", help="Outputs of the classifier.")] = None,
    batch: Annotated[int, typer.Option("--batch", help="Clips at once, for the time.")] = 1,
    timed: Annotated[bool, typer.Option("--time", help="Also run it and measure the time.")] = False,
    repeats: Annotated[int, typer.Option("--repeats", help="Timed passes, after two to warm up.")] = 7,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Count what a network costs for one image or clip.

    GFLOPs are given by two conventions: the paper's (2 MACs and all elementwise operations, halved) and plain
    multiply-accumulates. --time runs it with random weights; counting alone needs no memory.
    """
    import torch

    from fewtokens import models
    from fewtokens.encode import pick_device
    from fewtokens.evaluate.cost import activation_bytes, count, count_torch_macs, latency, parameters

    if batch < 1 or repeats < 1:
        raise ValueError(f"--batch and --repeats must be at least 1, got {batch} and {repeats}")
    rows: list[dict[str, Any]] = []
    for name in names:
        network, shape = _build(name, size, frames, classes, torch.device("meta"))
        clip = torch.empty(1, *shape, device="meta")
        counted = count(network, clip)
        row: dict[str, Any] = {
            "model": name,
            "input": "x".join(str(shape[axis]) for axis in (0, 2, 3)),
            "GFLOPs (paper)": counted.by("paper"),
            "GMACs": count_torch_macs(network, clip),
            "parameters": parameters(network),
            "activations, MiB": activation_bytes(network.train(), clip) / 2**20,
        }
        if models.preset_kind(name) == "x2plus1d":
            row["GFLOPs (paper_video)"] = counted.by("paper_video")
        if counted.unknown:
            row["not counted"] = ", ".join(counted.unknown)
        if timed:
            where = pick_device(device)
            network, _ = _build(name, size, frames, classes, where)
            measured = latency(network.eval(), torch.rand(batch, *shape, device=where), repeats=repeats)
            row |= {"ms": measured.median, "low": measured.low, "high": measured.high, "batch": batch}
            row["device"] = str(where)
        rows.append(row)
    if as_json:
        print_json(rows)
        return
    # A column for each network: names are long, and there are more figures than networks.
    keys = list(dict.fromkeys(key for row in rows for key in row if key != "model"))
    out.print(table("", [{"": key} | {row["model"]: _text(key, row.get(key)) for row in rows} for key in keys]))
    out.print(
        "For one image or clip. paper: (2 MACs + elementwise) / 2, as TokenLearner's tables; activations: what a "
        "forward pass keeps for the backward pass in float32.",
        style="dim",
    )


def _build(name: str, size: int | None, frames: int | None, classes: int | None, device: Any) -> tuple[Any, list[int]]:
    """The network on a device with random weights, and the shape [T,3,H,W] of a clip for it."""
    import torch

    from fewtokens import models

    changes: dict[str, Any] = {} if classes is None else {"classes": classes}
    if Path(name).is_dir():
        said = models.read_config(name)
        kind, settings = models.KINDS[said["fewtokens_model"]], said["config"]
    else:
        kind, settings = models.preset(name)
    if frames is not None:
        changes["frames"] = frames
    if size is not None and kind is models.VisionTransformer:
        changes["size"] = (size, size)
    config = models.make_config(kind, settings | changes, name)
    with torch.device(device):
        network = kind(config)
    side = config.size if kind is models.VisionTransformer else (size or 224, size or 224)
    return network, [config.frames, 3, *side]


def _text(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key == "parameters":
        return f"{value / 1e6:.2f} M"
    if isinstance(value, float):
        return f"{value:.2f}" if value >= 1 else f"{value:.4f}"
    return str(value)
