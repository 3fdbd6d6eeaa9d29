"""VideoScan in the cache: worked examples of the published rule on carriers."""

from __future__ import annotations

import pytest
import torch

from fewtokens.core.kv_memory import FIRST, LAST, MASS, RAW, SECOND, Columns, slot_info
from fewtokens.methods.layers.videoscan_cache import VideoScanCache
from tests.helpers.slots import PREFIX, SUMMARY, TEXT, at_angles, kinds, new_state, push


def test_the_earlier_of_the_most_similar_neighbors_is_dropped():
    # The published code with a limit of 4 holds at most 3.
    state = push(VideoScanCache(3), at_angles(0, 4, 50, 52, 90, 91))
    assert state.slots.info[PREFIX:, SECOND].tolist() == [1, 3, 5]
    assert kinds(state) == [TEXT] * PREFIX + [SUMMARY] * 3
    torch.testing.assert_close(state.slots.keys[1][0, PREFIX:], 2 * state.stats["carriers"])
    still = push(VideoScanCache(3), at_angles(*[30] * 8))
    assert still.slots.info[PREFIX:, SECOND].tolist() == [5, 6, 7]


def test_a_merged_carrier_averages_keys_and_values_by_frames():
    state = push(VideoScanCache(2, rule="merge"), at_angles(0, 4, 6, 90))
    info = state.slots.info[PREFIX:]
    assert info[:, MASS].tolist() == [3, 1]
    assert info[:, [SECOND, FIRST, LAST]].tolist() == [[1, 0, 2], [3, 3, 3]]
    mean = torch.stack([frame[0] for frame in at_angles(0, 4, 6)]).mean(0)
    torch.testing.assert_close(state.slots.keys[0][0, PREFIX], mean)
    torch.testing.assert_close(state.slots.values[1][0, PREFIX], -2 * mean)
    torch.testing.assert_close(state.stats["carriers"][0], mean)


def test_a_carrier_is_the_mean_of_its_frame_and_comes_after_it():
    state, runs = new_state(3)
    frame = torch.arange(12.0).reshape(4, 3)
    VideoScanCache().write(Columns(frame, slot_info(RAW, 4, y=torch.arange(4), x=1)), state, runs)
    torch.testing.assert_close(state.slots.keys[0][0, -1], frame.mean(0))
    assert state.slots.info[-1].tolist()[5:8] == [1.5, 1, PREFIX + 4]
    assert runs.masks[-1] is None and len(runs.contexts[-1]) == PREFIX


def test_arguments():
    with pytest.raises(ValueError, match="rule must be 'drop' or 'merge', got 'keep'"):
        VideoScanCache(rule="keep")
    with pytest.raises(ValueError, match="cap must be at least 1, got 0"):
        VideoScanCache(0)
    with pytest.raises(ValueError, match="positions must be 'contiguous' or 'absolute', got 'keep'"):
        VideoScanCache(positions="keep")
