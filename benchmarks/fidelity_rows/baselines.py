"""The baselines, which have no reference."""

from __future__ import annotations

from fewtokens.core.registry import BASELINES
from fidelity_rows import Row

ROWS = [Row(name, why="baseline without a reference") for name in BASELINES]
