"""`fewtokens models`: the networks that can be built, trained and loaded by name."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from fewtokens.cli.command import verb
from fewtokens.cli.console import out
from fewtokens.cli.options import Check, JsonOption, check_network
from fewtokens.cli.tables import print_json, table


@verb("fewtokens models", "fewtokens models tokenlearner_vit_b16_8at6")
def models(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Name of a network, or folder of a saved one."),
        Check(check_network),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the networks, or describe one."""
    from fewtokens import networks

    if name is None:
        rows = [
            {
                "name": preset,
                "parameters": networks.describe(networks.build_on_meta(preset))["parameters"],
                "summary": networks.PRESETS[preset],
            }
            for preset in networks.names()
        ]
        if as_json:
            print_json(rows)
            return
        out.print(table("", [row | {"parameters": millions(row["parameters"])} for row in rows]))
        out.print(
            "Names are parsed, so other sizes and layers work too: tokenlearner_vit_l14_4at20, vivit_s8, ...\n"
            "Cost of a network: fewtokens cost NAME. To train one:\n"
            "fewtokens train classify NAME --data FOLDER --out RUN.",
            style="dim",
        )
        return
    network = networks.load(name) if networks.is_saved(name) else networks.build_on_meta(name)
    description = networks.describe(network)
    if as_json:
        print_json(description)
        return
    out.print(
        f"[bold]{escape(name)}[/bold]  "
        f"[dim]{description['kind']}, {millions(description['parameters'])} parameters[/dim]"
    )
    if name in networks.PRESETS:
        out.print(escape(networks.PRESETS[name]), highlight=False)
    out.print(
        table("Settings", [{"setting": key, "value": str(value)} for key, value in description["config"].items()])
    )


def millions(parameters: int) -> str:
    """A number of parameters as tables print it."""
    return f"{parameters / 1e6:.2f} M"
