"""The page of the command line: every verb with its help, its examples and its options, read from the code."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from fewtokens.cli.verbs import EVAL, TRAIN, VERBS, every_verb, find

_INTRO = """\
# Commands

`fewtokens VERB --help` prints the same as this page. `--json` prints one JSON document instead of tables; its keys are
listed in [File formats](../formats.md). Exit codes: 0 for success, 1 if some of several inputs failed, 2 for an error,
which is one line.
"""


def _escape(text: str) -> str:
    """Help as Markdown: no markup of the terminal, no HTML, no column separators."""
    text = text.replace("\\[", "[")
    for mark in "<*_|":
        text = text.replace(mark, f"\\{mark}")
    return text


def _row(parameter: Any) -> str:
    """A row of the table of options; a flag has no value, and a default is printed if it holds information."""
    argument = type(parameter).__name__.endswith("Argument")
    names = ", ".join(
        f"`{name}`" for name in (parameter.opts if not argument else [parameter.metavar or parameter.name])
    )
    if parameter.secondary_opts:
        names += ", " + ", ".join(f"`{name}`" for name in parameter.secondary_opts)
    default = parameter.default
    if parameter.required:
        shown = "required"
    elif default is None or default is False or default == () or callable(default):
        shown = ""
    else:
        shown = f"`{default}`" if default != "" else '`""`'
    return f"| {names} | {shown} | {_escape(' '.join((parameter.help or '').split()))} |"


def _options(parameters: list[Any]) -> str:
    """The table of arguments and options, a row with the name of each panel above its options."""
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for panel, members in groupby(parameters, lambda parameter: parameter.rich_help_panel or "Arguments"):
        rows += [f"| **{panel}** | | |", *map(_row, members)]
    return "\n".join(rows)


def page() -> str:
    """The page as Markdown."""
    parts = [_INTRO]
    group = ""
    for names in every_verb():
        if len(names) > 1 and names[0] != group:
            group = names[0]
            table = {"train": TRAIN, "eval": EVAL}[group]
            lines = "\n".join(f"* [`{name}`](#{group}-{name}): {_escape(line)}" for name, line in table.items())
            parts.append(f"## {group}\n\n{_escape(VERBS[group])}\n\n{lines}")
        verb = find(*names)
        command = verb.command(names[-1], "")
        heading = f"{'#' * (len(names) + 1)} {' '.join(names)}"
        examples = "```bash\n" + "\n".join(verb.examples) + "\n```"
        visible = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
        parts += [heading, _escape(verb.help), examples, _options(visible)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"
