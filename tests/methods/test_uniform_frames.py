"""Evenly spaced frames against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewtokens.core import registry


@pytest.mark.parametrize(("total", "keep", "count"), [(10, 4, 4), (100, 0.05, 5), (7, 1, 1), (33, 32, 32)])
def test_frames_are_those_of_linspace(total, keep, count):
    selection = registry.create_method("uniform_frames", keep=keep).select(torch.arange(total) / 25)
    assert selection.index.tolist() == np.round(np.linspace(0, total - 1, count)).astype(int).tolist()
