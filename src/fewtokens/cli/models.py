"""`fewtokens models`: the networks that can be built, trained and loaded by name."""

from __future__ import annotations

from typing import Annotated, Any

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
            {"model": each, "parameters": millions(room.on_meta(each)), "what": room.PRESETS[each]}
            for each in room.names()
        ]
        if as_json:
            print_json(rows)
            return
        out.print(table("", rows))
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
    out.print(f"[bold]{escape(name)}[/bold]  [dim]{described['kind']}, {millions(network)} parameters[/dim]")
    if name in room.PRESETS:
        out.print(escape(room.PRESETS[name]), highlight=False)
    out.print(table("Settings", [{"setting": key, "value": str(value)} for key, value in described["config"].items()]))


def millions(network: Any) -> str:
    """Parameters, as tables print them."""
    return f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.2f} M"
