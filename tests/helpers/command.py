"""Parses a command line without running it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fewtokens.cli.verbs import GROUPS, find


def parse(words: Sequence[str]) -> Any:
    """Returns the click context of a verb; its `params` are the values of the options.

    Raises:
        click.ClickException: the verb does not exist, or does not accept these options.
    """
    program, *words = words
    assert program == "fewtokens"
    count = 2 if words[0] in GROUPS else 1
    return find(*words[:count]).command(words[count - 1], "").make_context(" ".join(words[:count]), list(words[count:]))
