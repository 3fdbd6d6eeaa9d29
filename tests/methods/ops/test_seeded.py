"""The hash behind every random seed, against pure-Python integers: another hash would change every published number."""

from __future__ import annotations

import pytest

from fewtokens.methods.ops.seeded import uniform_hash
from tests.helpers import naive


@pytest.mark.parametrize("seed", [0, 1, 7, 2**31, 2**32 - 1, 2**40 + 3])
def test_against_python_integers(seed):
    assert uniform_hash(seed, 1000).tolist() == naive.uniform_hash(seed, 1000)
    assert uniform_hash(seed, 8, start=500).tolist() == naive.uniform_hash(seed, 508)[500:]


@pytest.mark.parametrize(
    ("seed", "values"),
    [
        (0, [12383512, 3884424, 5678138, 2943307, 8144350, 8059140, 11028906, 2775571]),
        (7, [5236639, 15043467, 15206137, 11305665, 13183886, 7670482, 2787124, 975373]),
    ],
)
def test_eight_values(seed, values):
    """In units of 2**-24."""
    assert [round(value * 2**24) for value in uniform_hash(seed, 8).tolist()] == values
