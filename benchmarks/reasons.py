"""Which reasons a row of results/peers.json shows, for its table and the pages of the methods."""

from __future__ import annotations

from typing import Any


def shown_reasons(row: dict[str, Any]) -> str:
    """The reason for different tokens, if they differ, and the reason for a ratio below 1, if it is below 1; or ""."""
    unequal = row["unequal"] if row["equal_tokens"] not in (None, 1.0) else ""
    slower = row["reason"] if row["ratio"] < 1 else ""
    return "; ".join(filter(None, (unequal, slower)))
