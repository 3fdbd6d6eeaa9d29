"""PyramidDrop by stages on handmade attention, against sorted lists."""

from __future__ import annotations

from dataclasses import replace

from fewtokens.core.layer_method import PrunePoint
from fewtokens.methods.layers.pyramid_drop import PyramidDrop
from tests.helpers.layers import COLUMNS, kept_columns, layer_state, top_columns


def test_fractions_are_of_the_tokens_at_the_first_layer():
    method, inputs = PyramidDrop((0.75, 0.5, 1), layers=(1, 2, 3)), layer_state()
    survivors = [list(COLUMNS)] * 2
    for stage, count in enumerate((6, 4, 1)):
        decision = method.choose(inputs, stage)
        survivors = [
            top_columns(row, columns, count) for row, columns in zip(inputs.scores.tolist(), survivors, strict=True)
        ]
        assert kept_columns(decision.kept) == survivors
        # The next layer scores the remaining tokens differently.
        inputs = replace(inputs, video=decision.kept & inputs.video, scores=inputs.scores.flip(1))


def test_the_stages_of_the_paper():
    """A quarter, a half and three quarters of the depth, each scored by the layer that follows."""
    assert PyramidDrop().prune_points(32) == [PrunePoint(layer, layer) for layer in (8, 16, 24)]
    assert PyramidDrop().prune_points(28) == [PrunePoint(layer, layer) for layer in (7, 14, 21)]
    assert PyramidDrop().keep == (0.5, 0.25, 0.125)
