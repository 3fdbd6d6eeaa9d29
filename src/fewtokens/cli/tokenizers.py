"""`fewtokens tokenizers`: lists the presets of tokenizers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.command import verb
from fewtokens.cli.console import out
from fewtokens.cli.options import JsonOption
from fewtokens.cli.progress import progress
from fewtokens.cli.tables import print_json, table
from fewtokens.core.tokenizer_syntax import check_preset, part_names

if TYPE_CHECKING:
    from fewtokens.tokenizers import Layout, Preset, Tokenizer

# Frames, height and width that tokens and bits are counted for.
_CLIP = (17, 256, 256)


@verb("fewtokens tokenizers", "fewtokens tokenizers --json", "fewtokens tokenizers larp")
def tokenizers(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Tokenizer to describe.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the tokenizers of papers, or describe one.

    Tokens and bits are those of 17 frames of 256x256 pixels, or of the longest clip or the size that a tokenizer
    accepts; the column "clip" has frames x height x width. Parameters are counted, not published ones.
    """
    if name is not None:
        check_preset(name)
        row = describe(name) | describe_tiny(name)
        if as_json:
            print_json(row)
        else:
            _show(row)
        return
    rows = []
    names = part_names("presets")
    with progress("tokenizers", len(names)) as advance:
        for number, each in enumerate(names):
            rows.append(describe(each))
            advance(number + 1)
    if as_json:
        print_json(rows)
        return
    columns = ("name", "clip", "tokens", "bits", "parameters_m", "license")
    headings = {"parameters_m": "M parameters"}
    listing = [{headings.get(key, key): _text(key, row[key]) for key in columns} for row in rows]
    out.print(table("", listing))
    out.print(
        "To describe one: fewtokens tokenizers NAME. To train one: fewtokens train tokenizer DATA --tokenizer NAME.",
        style="dim",
    )


def describe(name: str) -> dict[str, Any]:
    """Returns the properties of a preset as plain values (see docs/formats.md)."""
    import torch

    from fewtokens.tokenizers import create_tokenizer, get_preset

    preset = get_preset(name)
    with torch.device("meta"):
        tokenizer = create_tokenizer(name)
    layout = _layout(tokenizer, preset)
    return {
        "name": name,
        "paper": preset.paper,
        "license": preset.license,
        "clip": "x".join(map(str, layout.size)),
        "tokens": layout.tokens,
        "bits": layout.bits,
        "bits_per_pixel": layout.bits_per_pixel,
        "parameters_m": _millions(tokenizer),
        "published_tokens": preset.tokens,
        "published_parameters_m": preset.parameters,
        "published_clip": "x".join(map(str, preset.clip)),
        "figures": dict(preset.figures),
        "spec": tokenizer.spec,
        "window": tokenizer.window,
        "differs": preset.differs,
    }


def describe_tiny(name: str) -> dict[str, Any]:
    """Returns the properties of a preset at the size that trains on a CPU, and its settings of training."""
    import torch

    from fewtokens.tokenizers import create_tokenizer, get_preset

    preset = get_preset(name)
    with torch.device("meta"):
        tiny = create_tokenizer(name, tiny=True)
    clip = "x".join(map(str, preset.tiny_clip))
    return {
        "tiny": {"spec": tiny.spec, "clip": clip, "parameters_m": _millions(tiny)},
        "recipe": dict(preset.recipe),
    }


def _layout(tokenizer: Tokenizer, preset: Preset) -> Layout:
    """The layout of the common clip, or of what the tokenizer accepts of it."""
    if preset.source == "video" and preset.clip[0] > 1:
        frames = _CLIP[0] if tokenizer.window is None else min(_CLIP[0], tokenizer.window)
        try:
            return tokenizer.layout(frames, *_CLIP[1:])
        except ValueError:  # a fixed size
            pass
    return tokenizer.layout(*preset.clip)


def _millions(tokenizer: Tokenizer) -> float:
    return round(sum(parameter.numel() for parameter in tokenizer.parameters()) / 1e6, 4)


def _text(key: str, value: Any) -> Any:
    if value is None:
        return "varies" if key in ("tokens", "bits") else "-"
    return round(value) if key == "bits" else value


def _show(row: dict[str, Any]) -> None:
    out.print(f"[bold]{escape(row['name'])}[/bold]  [dim]{escape(row['paper'])}[/dim]\n", highlight=False)
    facts = {
        "clip": row["clip"],
        "tokens": _text("tokens", row["tokens"]),
        "bits": _text("bits", row["bits"]),
        "bits per pixel": "varies" if row["bits_per_pixel"] is None else f"{row['bits_per_pixel']:.4g}",
        "parameters": f"{row['parameters_m']:.4g} M",
        "published clip": row["published_clip"],
        "published tokens": row["published_tokens"],
        "published parameters": None if row["published_parameters_m"] is None else f"{row['published_parameters_m']} M",
        **row["figures"],
        "license": row["license"],
        "window": row["window"],
        "tiny clip": row["tiny"]["clip"],
        "tiny parameters": f"{row['tiny']['parameters_m']:.4g} M",
    }
    entries = [{"property": key, "value": str(value)} for key, value in facts.items() if value is not None]
    out.print(table("", entries))
    for label, value in (("spec", row["spec"]), ("tiny", row["tiny"]["spec"]), ("recipe", row["recipe"])):
        out.print(f"[bold]{label}[/bold]  {escape(str(value))}", highlight=False)
    if row["differs"]:
        out.print(f"[bold]differs[/bold]  {escape(row['differs'])}", highlight=False)
