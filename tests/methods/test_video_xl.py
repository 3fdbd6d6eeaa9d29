"""Video-XL: the published placing rule, windows, and what stays of them."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core.kv_memory import COUNTED, INDEX, MASS, SECOND, Columns, slot_info
from fewtokens.methods.layers.video_xl import VideoXL, summary_places
from tests.helpers.slots import PREFIX, RAW, SUMMARY, TEXT, kinds, new_state, push


def test_the_placing_rule():
    """Golden: 8 tokens at ratio 4; in chunks of 3 and 5 the same summaries."""
    assert summary_places(8, 4, 0).tolist() == [4, 9]
    assert summary_places(3, 4, 0).tolist() == []
    assert summary_places(5, 4, 3).tolist() == [1, 6]
    assert len(summary_places(1440, 8, 0)) == 180
    assert summary_places(3, 1, 0).tolist() == [1, 3, 5]


def frames(count: int, tokens: int, dim: int = 4) -> list[torch.Tensor]:
    return list(torch.randn(count, tokens, dim, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(("tokens", "ratio", "window"), [(144, 8, 1440), (6, 4, 12), (5, 3, 7), (7, 1, 4), (3, 8, 5)])
def test_held_slots_follow_the_formula(tokens, ratio, window):
    for count in (1, 3, 11):
        state = push(VideoXL(ratio, window=window, cap=None), frames(count, tokens))
        assert kinds(state).count(SUMMARY) == tokens * count // ratio
        assert kinds(state).count(RAW) == tokens * count % window
        assert kinds(state)[:PREFIX] == [TEXT] * PREFIX
        summaries = state.slots.info[state.slots.kind == SUMMARY]
        assert summaries[:, MASS].eq(ratio).all()
        last = torch.arange(1, len(summaries) + 1) * ratio - 1  # the token before each
        assert summaries[:, SECOND].tolist() == (last // tokens).tolist()


def test_a_window_reads_the_summaries_before_it():
    state, runs = new_state(4)
    for frame in frames(3, 4):
        VideoXL(2, window=4).write(Columns(frame, slot_info(RAW, 4)), state, runs)
    assert [len(context) for context in runs.contexts] == [0, PREFIX, PREFIX + 2, PREFIX + 4]
    assert runs.masks == [None] * 4


def test_step_expansion_hides_the_summaries_of_an_unfinished_window():
    method = VideoXL(2, window=8, attention="step_expansion")
    state, runs = new_state(4)
    method.write(Columns(frames(1, 4)[0], slot_info(RAW, 4)), state, runs)
    # Two columns of text, two tokens, a summary, two tokens, a summary.
    seen = runs.masks[-1].long().tolist()
    assert seen[3] == [1, 1, 1, 1, 0, 1, 0, 0] and seen[2] == [1, 1, 1, 1, 1, 0, 0, 0]
    assert seen[5] == [1, 1, 1, 1, 0, 1, 1, 1]
    assert state.slots.info[PREFIX:, INDEX].tolist() == [2, 3, 4, 4, 5, 6]
    read = method.read(state, lambda slots: torch.zeros(len(slots)))
    assert len(read) == PREFIX + 4 and not (read.kind == SUMMARY).any()
    method.write(Columns(frames(1, 4)[0], slot_info(RAW, 4)), state, runs)
    assert kinds(state) == [TEXT] * PREFIX + [SUMMARY] * 4
    assert state.slots.info[:, COUNTED].all()


def test_beyond_the_cap_the_most_similar_pairs_are_averaged():
    a, b = torch.tensor([1.0, 0]), torch.tensor([0.0, 1])
    state = push(VideoXL(1, window=6, cap=5), [torch.stack([a, b, a, a, b, a])])
    assert torch.equal(state.slots.keys[0][0, PREFIX:], torch.stack([a, b, a, b, a]))
    assert state.slots.info[PREFIX:, MASS].tolist() == [1, 1, 2, 1, 1]
    state = push(VideoXL(2, window=4, cap=3), frames(20, 4))
    assert kinds(state).count(SUMMARY) == 3 and state.slots.info[PREFIX:, MASS].sum() == 80
    assert (state.slots.info[PREFIX:, SECOND].diff() > 0).all()


def test_arguments():
    with pytest.raises(ValueError, match="ratio must be at least 1, got 0"):
        VideoXL(0)
    with pytest.raises(ValueError, match="attention must be 'full_coverage' or 'step_expansion', got 'causal'"):
        VideoXL(attention="causal")
