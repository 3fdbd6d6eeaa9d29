"""`fewtokens methods`: lists the methods."""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.command import verb
from fewtokens.cli.console import out
from fewtokens.cli.options import METHOD, JsonOption
from fewtokens.cli.tables import print_json, table
from fewtokens.core.syntax import check_name

# In processing order.
_STAGES = {
    "frames": "select the frames to read",
    "pixels": "before the encoder",
    "encoder": "between the blocks of the encoder",
    "tokens": "after the encoder",
    "llm": "inside the layers of a language model",
}


@verb("fewtokens methods", "fewtokens methods --stage llm", "fewtokens methods tome")
def methods(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Method to describe.")] = None,
    stage: Annotated[
        str | None,
        typer.Option("--stage", help=f"List only methods of this stage: {', '.join(_STAGES)}.", rich_help_panel=METHOD),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List all methods by stage, or describe one."""
    if name is not None and stage is not None:
        raise ValueError("give NAME or --stage, not both")
    if stage is not None and stage not in _STAGES:
        raise ValueError(f"--stage must be one of {', '.join(_STAGES)}, got {stage!r}")
    if name is not None:
        check_name(name)
    from fewtokens.core import registry

    if name is None:
        every = [describe(method) for method in registry.every_name()]
        rows = [row for row in every if stage in (None, row["stage"])]
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
    out.print(escape(reflow(row["description"], out.width)), highlight=False)
    out.print()
    defaults = [{"argument": key, "default": default_of(name, key, row["description"])} for key in row["arguments"]]
    out.print(table("Defaults", defaults))
    for label in ("needs", "cost", "paper", "license"):
        if row[label] and row[label] != "none needed":
            value = ", ".join(row[label]) if isinstance(row[label], list) else row[label]
            shown = "implementation" if label == "license" else label
            out.print(f"[bold]{shown}[/bold]  {escape(value)}", highlight=False)


def reflow(text: str, width: int) -> str:
    """Returns a docstring with each paragraph and each entry of "Args:" wrapped to a width; code lines stay apart."""
    blocks: list[list[str]] = []
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        previous = blocks[-1] if blocks else [""]
        start = len(previous[0]) - len(previous[0].lstrip())
        continues = bool(line.strip() and previous[0].strip()) and previous != ["Args:"]
        if continues and (indent > start or indent == start == 0):
            previous.append(line)
        else:
            blocks.append([line])
    lines = []
    for block in blocks:
        margin = " " * (len(block[0]) - len(block[0].lstrip()))
        words = " ".join(line.strip() for line in block)
        wrapper = textwrap.TextWrapper(
            width, initial_indent=margin, subsequent_indent=2 * margin, break_on_hyphens=False, break_long_words=False
        )
        lines.append(wrapper.fill(words))
    return "\n".join(lines)


def default_of(name: str, argument: str, text: str) -> str:
    """Returns the value that an argument has if it is not given, as text.

    For an argument whose default is None this is the value that the method sets, or the one that `text`, the
    description of the argument or of the method, states; "see text" if that is not a plain value.
    """
    from fewtokens.core import registry

    kind = registry.get(name)
    value = inspect.signature(kind).parameters[argument].default
    if value is None:
        value = getattr(_by_default(kind), argument, None)
    if value is not None:
        return repr(value)
    entry = re.search(rf"^ {{4}}[\w, ]*\b{argument}\b[\w, ]*: (.*(?:\n {{5}}.*)*)", text, re.M)
    stated = re.search(r"Default: (?:None, )?(.+?)(?=[,;]|\.?$|\. )", " ".join((entry[1] if entry else text).split()))
    if not stated or stated[1] == "None":
        return "None"
    return stated[1] if re.fullmatch(r"[\d./e-]+|\"[^\"]*\"|True|False", stated[1]) else "see text"


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


def _by_default(kind: type[Any]) -> Any:
    """A method with its default arguments; what it trains is on the meta device, where nothing is initialized."""
    import torch

    with torch.device("meta"):
        return kind()


def describe(name: str) -> dict[str, Any]:
    """Returns the properties of a method as plain values (see docs/formats.md)."""
    from fewtokens.core import registry
    from fewtokens.core.grid import Grid
    from fewtokens.core.method import Method

    kind = registry.get(name)
    method = _by_default(kind)
    has_keep = "keep" in method.arguments
    budget = "threshold, or exact" if has_keep else "threshold"
    if getattr(method, "budget", None) or (not isinstance(method, Method) and (has_keep or method.stage == "frames")):
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
