"""A command line held against the parser of its verb, without running it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fewtokens.cli.verbs import GROUPS, find


def parse(words: Sequence[str]) -> Any:
    """The context of a verb, whose params are the values of its options.

    Raises:
        Exception: of typer, if there is no such verb, or it does not take these options.
    """
    program, *words = words
    assert program == "fewtokens"
    count = 2 if words[0] in GROUPS else 1
    return find(*words[:count]).command(words[count - 1], "").make_context(" ".join(words[:count]), list(words[count:]))
