"""PyramidDrop stage by stage on hand-made attention, against sorted lists."""

from __future__ import annotations

from dataclasses import replace

from fewtokens.core.layer_method import PrunePoint
from fewtokens.methods.layers.pyramid_drop import PyramidDrop
from tests.helpers.layers import COLUMNS, best, chosen, state


def test_shares_are_of_what_was_there_at_first():
    method, given = PyramidDrop((0.75, 0.5, 1), layers=(1, 2, 3)), state()
    left = [list(COLUMNS)] * 2
    for stage, count in enumerate((6, 4, 1)):
        decision = method.choose(given, stage)
        left = [best(row, columns, count) for row, columns in zip(given.scores.tolist(), left, strict=True)]
        assert chosen(decision.kept) == left
        # The next layer looks otherwise at those that are still there.
        given = replace(given, video=decision.kept & given.video, scores=given.scores.flip(1))


def test_the_papers_stages():
    """A quarter, a half and three quarters of the depth, each scored by the layer that follows."""
    assert PyramidDrop().prune_points(32) == [PrunePoint(layer, layer) for layer in (8, 16, 24)]
    assert PyramidDrop().prune_points(28) == [PrunePoint(layer, layer) for layer in (7, 14, 21)]
    assert PyramidDrop().keep == (0.5, 0.25, 0.125)
