"""Keyframes are spread evenly if there are too many."""

from __future__ import annotations

import torch

from fewtokens.methods.selection.keyframes import Keyframes


def test_keyframes_are_the_candidates():
    selector = Keyframes(3)
    assert selector.rate == "keyframes" and selector.needs == ("keyframes",)
    times = torch.tensor([0.0, 1.5, 2, 2.5, 9])
    assert selector.select(times).index.tolist() == [0, 2, 4]
    assert selector.select(times[:2]).index.tolist() == [0, 1]
