"""`fewtokens models`: the networks that can be built, trained and loaded by name."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from fewtokens.cli.command import verb
from fewtokens.cli.console import out
from fewtokens.cli.options import JsonOption
from fewtokens.cli.tables import print_json, table


@verb("fewtokens models", "fewtokens models tokenlearner_vit_b16_8at6")
def models(
    name: Annotated[str | None, typer.Argument(help="A name, or the folder of a saved model.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the networks, or explain one."""
    from fewtokens import networks as room

    if name is None:
        rows = [
            {"name": each, "parameters": room.describe(room.on_meta(each))["parameters"], "summary": room.PRESETS[each]}
            for each in room.names()
        ]
        if as_json:
            print_json(rows)
            return
        out.print(table("", [row | {"parameters": millions(row["parameters"])} for row in rows]))
        out.print(
            "Names are read, so other sizes and layers work too: tokenlearner_vit_l14_4at20, vivit_s8, ...\n"
            "Its cost: fewtokens cost NAME. Training one:\n"
            "fewtokens train classify NAME --data FOLDER --out RUN.",
            style="dim",
        )
        return
    network = room.load(name) if room.is_saved(name) else room.on_meta(name)
    described = room.describe(network)
    if as_json:
        print_json(described)
        return
    out.print(
        f"[bold]{escape(name)}[/bold]  [dim]{described['kind']}, {millions(described['parameters'])} parameters[/dim]"
    )
    if name in room.PRESETS:
        out.print(escape(room.PRESETS[name]), highlight=False)
    out.print(table("Settings", [{"setting": key, "value": str(value)} for key, value in described["config"].items()]))


def millions(parameters: int) -> str:
    """A number of parameters as tables print it."""
    return f"{parameters / 1e6:.2f} M"
