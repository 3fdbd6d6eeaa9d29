"""The number of tokens to remove in each block."""

from __future__ import annotations

import pytest

from fewtokens.methods.ops.schedule import schedule


def test_schedules():
    assert schedule(8, 12) == [8] * 12
    assert schedule((8, -1), 12) == [16, 14, 13, 11, 10, 8, 7, 5, 4, 2, 1, 0]
    assert sum(schedule((8, -1), 12)) == 91
    assert schedule((8, 0), 4) == [8] * 4
    assert schedule([3, 2], 4) == [3, 2, 0, 0]
    assert schedule((8, 1), 1) == [0]
    for r in (-1, (8, 2), [1, -1], "many", (1, 2, 3.5)):
        with pytest.raises(ValueError, match="r must be"):
            schedule(r, 4)
