"""`fewtokens methods`: what there is."""

from __future__ import annotations

import inspect
import re
from typing import Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.common import JsonOption, out, print_json, table, verb

app = typer.Typer(add_completion=False)


@app.command(
    epilog="Examples:  [bold]fewtokens methods[/bold]   |   [bold]fewtokens methods tome[/bold]",
    rich_help_panel=None,
)
@verb
def methods(
    name: Annotated[str | None, typer.Argument(help="Explain this one.")] = None, as_json: JsonOption = False
) -> None:
    """List the methods, or explain one."""
    from fewtokens.core import registry

    if name is None:
        rows = [describe(each) for each in registry.names()]
        if as_json:
            print_json(rows)
            return
        listed = [
            {
                "method": row["method"],
                "stage": row["stage"] + (", trained" if row["trainable"] == "yes" else ""),
                "count": row["count"],
                "streaming": row["streaming"],
                "from": _source(row["paper"]),
            }
            for row in rows
        ]
        out.print(table("", listed))
        out.print('One of them: fewtokens methods NAME. A chain: --with "rlt | tome(keep=0.1)".', style="dim")
        return
    row = describe(name)
    if as_json:
        print_json(row)
        return
    out.print(f"[bold]{name}[/bold]  [dim]stage {row['stage']}, {row['count']} count[/dim]\n")
    out.print(escape(row["text"]), highlight=False)
    out.print()
    out.print(table("Defaults", [{"argument": key, "default": repr(value)} for key, value in row["arguments"].items()]))
    for label in ("needs", "cost", "paper", "licence"):
        if row[label]:
            value = ", ".join(row[label]) if isinstance(row[label], list) else row[label]
            out.print(f"[bold]{label}[/bold]  {escape(value)}", highlight=False)


def _source(paper: str) -> str:
    """The arXiv number of a paper, or its first words."""
    found = re.search(r"\d{4}\.\d{5}", paper)
    return found.group() if found else paper.partition(":")[0]


def describe(name: str) -> dict[str, Any]:
    """Everything that a method says of itself."""
    from fewtokens.core import registry
    from fewtokens.core.method import Method

    method = registry.get(name)()
    either = "threshold, or exact" if "keep" in method.arguments else "threshold"
    streams = "no"
    if isinstance(method, Method):
        streams = "yes" if method.causal else "as an option" if type(method).step is not Method.step else "no"
    return {
        "method": name,
        "stage": method.stage,
        "count": "exact" if getattr(method, "budget", None) else either,
        "streaming": streams,
        "trainable": "yes" if getattr(method, "learned", False) else "no",
        "paper": method.paper,
        "baseline": name in registry.BASELINES,
        "arguments": {key: parameter.default for key, parameter in inspect.signature(type(method)).parameters.items()},
        "needs": list(getattr(method, "needs", ())),
        "cost": method.cost,
        "licence": method.license,
        "text": inspect.getdoc(type(method)),
    }
