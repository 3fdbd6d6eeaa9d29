"""Connected components, computed by SciPy."""

from __future__ import annotations

import numpy as np
import pytest

csgraph = pytest.importorskip("scipy.sparse.csgraph")


def connected_components(x: np.ndarray, tau: float) -> np.ndarray:
    """Returns the smallest member of the component of each row."""
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    _, label = csgraph.connected_components(unit @ unit.T > tau, directed=False)
    return np.array([np.flatnonzero(label == part)[0] for part in label])
