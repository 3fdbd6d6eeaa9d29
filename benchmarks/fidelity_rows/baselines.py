"""The plain baselines: nobody's method, so there is no reference to be faithful to."""

from __future__ import annotations

from fewtokens.core.registry import BASELINES
from fidelity_rows import Row

ROWS = [Row(name, why="baseline without a reference") for name in BASELINES]
