"""Short labels of specs, for figures, tables and pages."""

from __future__ import annotations

from fewtokens.core import registry
from fewtokens.core.spec import format_short


def shorten(spec: str) -> str:
    """Returns a spec without the arguments that have their default value; "all tokens" if it is empty."""
    try:
        links = [format_short(registry.get(name), name, arguments) for name, arguments in registry.parse(spec)]
    except ValueError:
        return spec.strip() or "all tokens"  # of a method that is not installed here
    return " | ".join(links)
