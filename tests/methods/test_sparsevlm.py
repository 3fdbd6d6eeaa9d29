"""SparseVLM on the examples of the specification, and against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewtokens.core.grid import Grid
from fewtokens.core.layer_method import LayerState, PrunePoint, VideoPlacement
from fewtokens.core.tokens import Tokens
from fewtokens.methods.layers.sparsevlm import SparseVlm
from tests.helpers.layers import COLUMNS, kept_columns, layer_state, top_columns


def test_raters_by_hand():
    rows = torch.tensor([[1.0, 0], [0, 1], [1, 1], [2, 0], [0, 0.5], [1, 1]])[None]
    video = torch.arange(6)[None] < 3
    # The means are 0.4338, 0.1659 and 0.4003, and their average is a third.
    assert SparseVlm().raters(rows, video, ~video)[0].tolist() == [False, False, False, True, False, True]
    padded = torch.cat([rows, 9 * torch.ones(1, 2, 2)], 1)
    question = torch.tensor([[False] * 3 + [True] * 3 + [False] * 2])
    video = torch.arange(8)[None] < 3
    assert SparseVlm().raters(padded, video, question)[0].nonzero().flatten().tolist() == [3, 5]


def test_a_single_word_is_a_rater():
    rows = torch.randn(1, 4, 8)
    video = torch.arange(4)[None] < 3
    assert SparseVlm().raters(rows, video, ~video)[0].tolist() == [False, False, False, True]


def image(count: int, width: int = 8) -> LayerState:
    """An image of `count` tokens and no text."""
    generator = torch.Generator().manual_seed(count)
    hidden = torch.randn(1, count, width, generator=generator)
    video = torch.ones(1, count, dtype=torch.bool)
    placement = VideoPlacement(0, torch.arange(count), Tokens.from_cells(hidden, Grid(1, 1, count)))
    scores = torch.rand(1, count, generator=generator)
    return LayerState(
        hidden, (hidden, hidden), video, torch.tensor([count]), scores, [placement], ~video, torch.nn.Identity()
    )


def test_the_published_budgets_of_an_image():
    """576 tokens become 300 + 9, then 200 + 4, then 110 + 3."""
    count = 576
    for index, expected in enumerate((309, 204, 113)):
        count = int(SparseVlm().choose(image(count), index).kept.sum())
        assert count == expected


def test_dropped_tokens_are_recycled():
    state = image(60)
    x, scores = state.hidden[0].double().numpy(), state.scores[0].tolist()
    decision = SparseVlm((20,), layers=(2,), recycle=0.5).choose(state, 0)
    order = sorted(range(60), key=lambda n: -scores[n])
    kept, recycled = order[:20], sorted(order[20 : 20 + int(0.5 * 40) + 1])
    count = len(recycled) // 10 + 1
    # Density peaks of the recycled tokens: dense, and far from anything denser.
    distance = np.linalg.norm(x[recycled][:, None] - x[recycled], axis=2) / np.sqrt(8)
    density = np.exp(-(np.sort(distance, 1)[:, :count] ** 2).mean(1))
    far = [
        min((distance[i, j] for j in range(len(recycled)) if density[j] > density[i]), default=distance.max())
        for i in range(len(recycled))
    ]
    peaks = sorted(range(len(recycled)), key=lambda i: -density[i] * far[i])[:count]
    label = [peaks.index(i) if i in peaks else int(distance[i, peaks].argmin()) for i in range(len(recycled))]
    expected = x.copy()
    for number, peak in enumerate(peaks):
        members = [recycled[i] for i in range(len(recycled)) if label[i] == number]
        expected[recycled[peak]] = x[members].mean(0)
    survivors = sorted(kept + [recycled[peak] for peak in peaks])
    assert decision.kept[0].nonzero().flatten().tolist() == survivors
    np.testing.assert_allclose(decision.hidden[0, survivors].numpy(), expected[survivors], atol=1e-5)


@pytest.mark.parametrize(("keep", "count"), [(0.5, 4), (0.32, 2), (5, 5), (100, 8)])
def test_without_recycling_the_highest_scores_remain(keep, count):
    state = layer_state(1)
    decision = SparseVlm((keep,), layers=(1,), recycle=0).choose(state, 0)
    assert kept_columns(decision.kept) == [top_columns(row, COLUMNS, count) for row in state.scores.tolist()]
    assert decision.hidden is None


def test_a_batch_equals_single():
    state = layer_state(2)
    both = SparseVlm((0.3,), layers=(1,)).choose(state, 0)
    for row in range(2):
        single = LayerState(
            state.hidden[row : row + 1], (state.rope[0][:1], state.rope[1][:1]), state.video[:1], state.before[:1],
            state.scores[row : row + 1], [], state.question[:1], state.final_norm,
        )  # fmt: skip
        alone = SparseVlm((0.3,), layers=(1,)).choose(single, 0)
        assert torch.equal(alone.kept[0], both.kept[row])
        torch.testing.assert_close(alone.hidden[0], both.hidden[row])


def test_points_and_wrong_arguments():
    assert SparseVlm().prune_points(32) == [PrunePoint(3, 2), PrunePoint(7, 6), PrunePoint(16, 15)]
    with pytest.raises(ValueError, match="one budget for each of the 3 layers"):
        SparseVlm((0.5,))
    with pytest.raises(ValueError, match="ascending order"):
        SparseVlm((0.5, 0.2), layers=(4, 2))
    with pytest.raises(ValueError, match=r"recycle must be in \[0, 1\)"):
        SparseVlm(recycle=1)
