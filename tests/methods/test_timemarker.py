"""TimeMarker's rule on the durations of the specification."""

from __future__ import annotations

import pytest
import torch

from fewtokens.methods.selection.timemarker import Timemarker


@pytest.mark.parametrize(("seconds", "frames", "tokens"), [(8, 16, 288), (64, 128, 36), (3600, 128, 36), (2, 4, 1152)])
def test_rate_and_tokens_fall_with_the_duration(seconds, frames, tokens):
    times = torch.arange(seconds * 4) / 4
    selection = Timemarker().select(times)
    assert len(selection) == frames
    rows, columns = selection.cells(24, 24)[0].tolist()
    expected = min(tokens, 576)
    assert rows * columns <= expected < (rows + 1) ** 2 and columns - rows in (0, 1)


def test_arguments():
    with pytest.raises(ValueError, match="at least"):
        Timemarker(tokens=5)
