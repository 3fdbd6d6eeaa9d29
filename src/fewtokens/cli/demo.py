"""`fewtokens demo`: every method that needs only pixels, on two generated videos, without network access or weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.command import verb
from fewtokens.cli.console import out
from fewtokens.cli.errors import check_folder
from fewtokens.cli.options import INPUT, METHOD, OUTPUT, JsonOption, SeedOption
from fewtokens.cli.pipelines import parse_keep
from fewtokens.cli.progress import progress
from fewtokens.cli.tables import print_json, table
from fewtokens.core.keys import with_headings

if TYPE_CHECKING:
    from fewtokens.evaluation.compare import Row
    from fewtokens.show import Clip

_CLIPS = {"static camera": "static", "moving camera": "pan"}
_PATCH = 16
_EXEMPT = (
    "Methods marked (threshold) have no budget: they keep the cells that exceed their default threshold. "
    "Methods marked (default) cannot reach this budget and run with their default arguments"
)


@verb("fewtokens demo", "fewtokens demo --keep 0.05 --out few")
def demo(
    folder: Annotated[
        Path, typer.Option("--out", help="Output folder for images and the page.", rich_help_panel=OUTPUT)
    ] = Path("demo"),
    keep: Annotated[
        str,
        typer.Option(
            "--keep", metavar="K", help="Budget of every method: a fraction or a count.", rich_help_panel=METHOD
        ),
    ] = "0.1",
    frames: Annotated[int, typer.Option("--frames", help="Frames per clip.", rich_help_panel=INPUT)] = 16,
    size: Annotated[int, typer.Option("--size", help="Side of the frames, in pixels.", rich_help_panel=INPUT)] = 256,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Run every method that needs only pixels on two generated videos: a table, images and a page.

    Methods with trained parameters, and those that use an encoder's attention or keys, are not included.
    """
    check_folder(folder)
    from fewtokens.show import draw_sheet, write_page

    budget = parse_keep(keep)
    assert budget is not None
    at_budget, others = _methods(budget, frames, size, seed)
    clips: list[Clip] = []
    report: list[dict[str, Any]] = []
    for title, kind in _CLIPS.items():
        clip, rows = _run(title, kind, {**at_budget, **others}, frames, size, seed)
        clips.append(clip)
        name = f"{kind}.png"
        caption = f"Synthetic clip, {clip.describe()}. Budget of every method: keep={keep}. {_EXEMPT}."
        draw_sheet(clip, folder / name, caption=caption)
        report.append({"clip": title, "sheet": str(folder / name), "rows": rows})
        if not as_json:
            labels = [result.name for result in clip.results]
            heading = f"{title}: {frames} frames, {rows[0]['cells']} patches, budget {keep}"
            out.print(table(heading, _columns(labels, rows)))
    page = write_page(
        clips, folder / "index.html", title=f"fewtokens demo: {len(at_budget) + len(others)} methods, budget {keep}"
    )
    if as_json:
        print_json({"page": str(page), "clips": report})
        return
    out.print(f"[dim]{_EXEMPT}. All methods without a mark meet the budget.[/dim]")
    out.print(f"\n[bold]Page[/bold]      {escape(str(page))}   (step through frames, switch methods)", highlight=False)
    for entry in report:
        out.print(f"[bold]Image[/bold]     {escape(entry['sheet'])}", highlight=False)
    out.print(
        "\n[bold]Now try[/bold]\n"
        '  fewtokens tokenize YOUR.mp4 --with "tome(keep=0.1)" --out tokens.safetensors\n'
        "  fewtokens show tokens.safetensors --out tokens.html\n"
        '  fewtokens tokenize YOUR.mp4 --encoder facebook/dinov2-small --with "kmeans(keep=32)" --out few.safetensors\n'
        "  fewtokens methods",
        highlight=False,
        soft_wrap=True,
    )


def _methods(budget: float | int | str, frames: int, size: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """All methods that need only pixels by label: those that meet the budget, and the others."""
    from fewtokens.core import registry
    from fewtokens.core.memory import Memory
    from fewtokens.encoders import Patches
    from fewtokens.evaluation.compare import methods_at_budget

    grid = Patches(_PATCH).grid(frames, size, size)
    at_budget = {method.name: method for method in methods_at_budget(budget, grid, seed, gives=("pixels",))}
    others = {f"{method.name}(threshold)": method for method in registry.build("rlt | dtd(mode='pixel')")}
    for name in registry.names():
        kind = registry.get(name)
        if issubclass(kind, Memory):  # holds all of a clip that is so short
            continue
        if kind.stage in ("pixels", "tokens") and not kind.learned and name not in at_budget:
            method = registry.create_method(name)
            if set(method.needs) <= {"pixels"}:
                others[f"{name}(default)"] = method
    return at_budget, others


def _run(
    title: str, kind: str, methods: dict[str, Any], frames: int, size: int, seed: int
) -> tuple[Clip, list[dict[str, Any]]]:
    """Runs all methods on one clip; returns what to draw and the rows of the table."""
    from fewtokens.encoders import Patches
    from fewtokens.evaluation.compare import compare
    from fewtokens.show import Clip
    from fewtokens.video import synthetic

    video = synthetic(kind, frames=frames, size=(size, size), seed=seed)
    encoder = Patches(_PATCH)
    tokens, cues = encoder(video.frames[None], video.times, needs=("pixels",))
    results, rows = [], []
    with progress(title, len(methods)) as advance:
        for label, row in zip(
            methods, compare(tokens, list(methods.values()), cues=cues, decode=encoder.decode, repeats=1), strict=True
        ):
            results.append(_result(label, row))
            rows.append({"method": row.method.name, "spec": row.method.spec, "cells": row.cells} | row.numbers())
            advance(len(rows))
    return Clip(name=title, frames=video.frames, times=video.times, results=results), rows


def _result(label: str, row: Row) -> Any:
    from fewtokens.show import Result

    assert row.frames is not None
    frames = (row.frames * 255).round().byte()
    numbers = {name: value for name, value in row.numbers().items() if value is not None}
    return Result(label, row.method.short_spec, row.tokens, frames, numbers)


def _columns(labels: list[str], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The columns that fit the terminal."""
    names = ("tokens", "retention", "psnr_db", "method_ms")
    return [
        with_headings({"method": label, **{name: row[name] for name in names}})
        for label, row in zip(labels, rows, strict=True)
    ]
