"""`fewtokens methods`: lists the methods."""

from __future__ import annotations

import inspect
import re
from typing import Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.command import verb
from fewtokens.cli.console import out
from fewtokens.cli.options import JsonOption
from fewtokens.cli.tables import print_json, table

# In processing order.
_STAGES = {
    "frames": "select the frames to encode",
    "pixels": "before the encoder",
    "encoder": "between the blocks of the encoder",
    "tokens": "after the encoder",
    "llm": "inside the layers of a language model",
}


@verb("fewtokens methods", "fewtokens methods tome")
def methods(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Method to describe.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List all methods by stage, or describe one."""
    from fewtokens.core import registry

    if name is None:
        rows = [describe(method) for method in [*registry.names(), *registry.layer_names()]]
        if as_json:
            print_json(rows)
        else:
            _list(rows)
        return
    row = describe(name)
    if as_json:
        print_json(row)
        return
    out.print(f"[bold]{name}[/bold]  [dim]stage {row['stage']}, {row['budget']} count[/dim]\n")
    out.print(escape(row["description"]), highlight=False)
    out.print()
    out.print(table("Defaults", [{"argument": key, "default": repr(value)} for key, value in row["arguments"].items()]))
    for label in ("needs", "cost", "paper", "license"):
        if row[label]:
            value = ", ".join(row[label]) if isinstance(row[label], list) else row[label]
            out.print(f"[bold]{label}[/bold]  {escape(value)}", highlight=False)


def _list(rows: list[dict[str, Any]]) -> None:
    stages = dict.fromkeys([*_STAGES, *(row["stage"] for row in rows)])
    for stage in stages:
        entries = [
            {
                "method": row["name"],
                "what it does": row["summary"] + (" (trained)" if row["trainable"] else ""),
            }
            for row in rows
            if row["stage"] == stage
        ]
        if entries:
            out.print(table(f"{stage}: {_STAGES.get(stage, '')}".rstrip(": "), entries))
            out.print()
    out.print('To describe one: fewtokens methods NAME. To chain several: --with "rlt | tome(keep=0.1)".', style="dim")


def summary_of(text: str) -> str:
    """Returns the first sentence of a docstring, without its full stop."""
    first = re.split(r"\.\s+(?=[A-Z`])", " ".join(text.split("\n\n")[0].split()))[0]
    return first.replace("`", "").rstrip(".")


def describe(name: str) -> dict[str, Any]:
    """Returns the properties of a method as plain values (see docs/formats.md)."""
    from fewtokens.core import registry
    from fewtokens.core.grid import Grid
    from fewtokens.core.method import Method

    kind = registry.get(name)
    method = kind()
    has_keep = "keep" in method.arguments
    budget = "threshold, or exact" if has_keep else "threshold"
    if getattr(method, "budget", None) or (has_keep and not isinstance(method, Method)):
        budget = "exact"
    if isinstance(method, Method) and method.min_count(Grid(16, 14, 14)) > 1:
        budget += " above a minimum"
    streams = "no"
    if isinstance(method, Method):
        streams = "yes" if method.causal else "as an option" if kind.step is not Method.step else "no"
    text = inspect.getdoc(kind) or ""
    return {
        "name": name,
        "stage": method.stage,
        "summary": summary_of(text),
        "budget": budget,
        "streaming": streams,
        "trainable": bool(getattr(method, "learned", False)),
        "paper": method.paper,
        "baseline": name in registry.BASELINES,
        "arguments": {key: parameter.default for key, parameter in inspect.signature(kind).parameters.items()},
        "needs": list(getattr(method, "needs", ())),
        "cost": method.cost,
        "license": method.license,
        "description": text,
    }
