"""D-CoDe's frames on the example of the specification."""

from __future__ import annotations

import pytest
import torch

from fewtokens.methods.selection.dcode import Dcode

ANGLES = torch.deg2rad(torch.tensor([0.0, 1, 2, 3, 80, 4, 5, 6, 7, 8]))
FEATURES = torch.stack([ANGLES.cos(), ANGLES.sin()], 1)


def test_the_odd_frame_completes_the_even_ones():
    selection = Dcode(3).select(torch.arange(10), features=FEATURES)
    assert selection.why["even"].tolist() == [0, 9]
    assert selection.index.tolist() == [0, 4, 9]


def test_the_share_of_even_frames():
    assert len(Dcode(3, alpha=0.0).select(torch.arange(10), features=FEATURES).why["even"]) == 1
    assert Dcode(3, alpha=1.0).select(torch.arange(10), features=FEATURES).index.tolist() == [0, 4, 9]
    assert Dcode(5, alpha=1.0).select(torch.arange(10), features=FEATURES).index.tolist() == [0, 2, 4, 7, 9]
    with pytest.raises(ValueError, match="alpha must be"):
        Dcode(alpha=2.0)
