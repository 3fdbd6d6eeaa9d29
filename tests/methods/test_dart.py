"""DART on the example of the specification, and against loops."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fewtokens.core.grid import Grid
from fewtokens.core.layer_method import LayerState, PrunePoint, VideoPlacement
from fewtokens.core.tokens import Tokens
from fewtokens.methods.layers.dart import Dart
from tests.helpers.layers import COLUMNS, kept_columns, layer_state
from tests.helpers.naive import cosine


def test_a_prompt_by_hand():
    """Pivots are token 3 and the second word; they keep 6, 7, 5 and 2, 1, 0."""
    angles = torch.tensor([0.0, 10, 20, 30, 90, 100, 180, 270, 45, 200]).deg2rad()
    hidden = torch.stack([angles.cos(), angles.sin()], 1)[None]
    video = torch.arange(10)[None] < 8
    keys = torch.tensor([1.0, 5, 2, 9, 3, 1, 1, 2, 2, 7])[None, :, None]
    tokens = Tokens.from_cells(hidden[:, :8], Grid(1, 2, 4))
    state = LayerState(
        hidden, (hidden, hidden), video, torch.tensor([8]), None, [VideoPlacement(0, torch.arange(8), tokens)],
        ~video, torch.nn.Identity(), keys,
    )  # fmt: skip
    kept = Dart(7, pivots=(1, 1)).choose(state, 0).kept
    assert (kept & video)[0].nonzero().flatten().tolist() == [0, 1, 2, 3, 5, 6, 7]


def by_loops(state: LayerState, row: int, count: int, pivots: tuple[int, int]) -> list[int]:
    hidden, norm = state.hidden[row].double().numpy(), state.keys[row].abs().sum(1).tolist()
    tokens, words = list(COLUMNS), state.question[row].nonzero().flatten().tolist()
    kept = sorted(tokens, key=lambda n: -norm[n])[: min(pivots[0], count)]
    order = [*kept, *sorted(words, key=lambda n: -norm[n])[: pivots[1]]]
    spare = count - len(kept)
    for turn, pivot in enumerate(order):
        part = spare // len(order) + (turn < spare % len(order))
        rest = [n for n in tokens if n not in kept]
        kept = kept + sorted(rest, key=lambda n: cosine(hidden[n], hidden[pivot]))[:part]
    return sorted(kept)


@pytest.mark.parametrize("pivots", [(2, 1), (0, 2), (3, 0), (4, 4)])
@pytest.mark.parametrize(("keep", "count"), [(0.5, 4), (0.32, 2), (1, 1), (7, 7), (1.0, 8)])
def test_against_loops(keep, count, pivots):
    state = layer_state(3)
    kept = Dart(keep, pivots=pivots).choose(state, 0).kept
    assert kept_columns(kept) == [by_loops(state, row, count, pivots) for row in range(2)]


def test_the_final_norm_changes_similarity():
    state = layer_state(3)
    scale = torch.rand(16, generator=torch.Generator().manual_seed(1)) ** 4
    normed = replace(state, final_norm=lambda hidden: hidden * scale)
    plain = Dart(4, pivots=(2, 1), final_norm=False).choose(normed, 0).kept
    assert torch.equal(plain, Dart(4, pivots=(2, 1)).choose(state, 0).kept)
    assert not torch.equal(plain, Dart(4, pivots=(2, 1)).choose(normed, 0).kept)


def test_a_prompt_without_question_has_pivots_in_the_video_only():
    state = replace(layer_state(), question=torch.zeros(2, 13, dtype=torch.bool))
    kept = Dart(5).choose(state, 0).kept
    assert [len(row) for row in kept_columns(kept)] == [5, 5]


def test_without_any_pivot_the_budget_is_kept():
    """Question pivots alone, and no question: the tokens with the largest norm."""
    state = replace(layer_state(), question=torch.zeros(2, 13, dtype=torch.bool))
    kept = kept_columns(Dart(3, pivots=(0, 4)).choose(state, 0).kept)
    norm = state.keys.abs().sum(2)
    assert kept == [sorted(sorted(COLUMNS, key=lambda n, row=row: -norm[row, n])[:3]) for row in (0, 1)]


def test_the_published_budget_of_an_image():
    """Of 576 tokens the published code keeps 124 in place of the 128 of its budget, see `Dart`."""
    assert math.floor(576 * 0.2222 + 1e-6) == 127
    assert 4 + 8 * (127 // 8) == 124


def test_points_and_wrong_arguments():
    assert Dart(layer=5).prune_points(28) == [PrunePoint(5, key_layer=4)]
    with pytest.raises(ValueError, match="pivots must be two numbers"):
        Dart(pivots=(0, 0))
    with pytest.raises(ValueError, match="a layer must be an int of at least 1"):
        Dart(layer=0)
