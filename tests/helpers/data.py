"""Where the real clips and weights are, for the tests that want them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def data_path(*parts: str) -> Path:
    """A path in $FEWTOKENS_DATA (or ../shared/data beside the repository); skips the test where it is absent."""
    root = os.environ.get("FEWTOKENS_DATA") or Path(__file__).parents[2] / "shared" / "data"
    path = Path(root).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)} in $FEWTOKENS_DATA")
    return path
