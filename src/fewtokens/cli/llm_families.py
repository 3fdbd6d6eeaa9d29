"""`fewtokens llm-families`: the families of video language models, and which of them work."""

from __future__ import annotations

from typing import Annotated

import typer

from fewtokens.cli.command import verb
from fewtokens.cli.console import out
from fewtokens.cli.options import JsonOption
from fewtokens.cli.tables import print_json, table


@verb("fewtokens llm-families", "fewtokens llm-families qwen3_5", "fewtokens llm-families --json")
def llm_families(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The model_type of one family.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the families of transformers whose visual tokens can be reduced, or show one."""
    from fewtokens.llm.families import FAMILIES, TESTED, find_family

    families = FAMILIES if name is None else (find_family(name),)
    rows = [family.row() for family in families]
    if as_json:
        print_json(rows if name is None else rows[0])
        return
    if name is not None:
        out.print(table("", [{"column": key, "value": shown(value)} for key, value in rows[0].items()]))
        return
    tables = {
        "": ("video", "axes", "prompts", "time_text"),
        "Vision towers": ("cues", "skips", "merges"),
        "Language models": ("inside",),
    }
    for title, columns in tables.items():
        works = [row for row in rows if row["works"]]
        out.print(table(title, [{key: shown(row[key]) for key in ("name", *columns)} for row in works]))
    out.print(
        table("Not supported", [{key: row[key] for key in ("name", "reason")} for row in rows if not row["works"]])
    )
    out.print(
        f"Tested with transformers {TESTED}. axes: of positions.\n"
        "prompts: fewtokens ask makes them; for others AutoProcessor does, for attach.\n"
        "time_text: the text of a time, with ... for the rows of a frame.\n"
        "cues: what methods can read; fewtokens methods NAME says what a method needs.\n"
        "skips: patches that methods of the stage pixels drop; merges: those of the stage encoder.\n"
        "inside: what methods inside the language model can do.",
        style="dim",
        highlight=False,
    )


def shown(value: object) -> str:
    """A value of the table for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(value)
    return "" if value == 0 else str(value)
