"""Runs a command line in this process, or parses it without running it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from click.testing import Result
from typer.testing import CliRunner

from fewtokens.cli import app
from fewtokens.cli.verbs import GROUPS, find


def run(*words: object, code: int = 0) -> Result:
    """Runs the command in this process, without a new import, and checks the exit code."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, f"exit {done.exit_code}\n{done.output}\n{done.exception!r}"
    return done


def parse(words: Sequence[str]) -> Any:
    """Returns the click context of a verb; its `params` are the values of the options.

    Raises:
        click.ClickException: the verb does not exist, or does not accept these options.
    """
    program, *words = words
    assert program == "fewtokens"
    count = 2 if words[0] in GROUPS else 1
    return find(*words[:count]).command(words[count - 1], "").make_context(" ".join(words[:count]), list(words[count:]))
