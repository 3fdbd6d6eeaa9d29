"""Finds real clips and weights, for tests that use them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def data_path(*parts: str) -> Path:
    """Returns a path in $FEWTOKENS_DATA (default: shared/data in the repository); skips the test if it is missing."""
    root = os.environ.get("FEWTOKENS_DATA") or Path(__file__).parents[2] / "shared" / "data"
    path = Path(root).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"requires {'/'.join(parts)} in $FEWTOKENS_DATA")
    return path
