"""The ring in the cache holds the text and exactly the last tokens."""

from __future__ import annotations

import torch

from fewtokens.core.kv_memory import INDEX
from fewtokens.methods.layers.ring_cache import RingCache
from tests.helpers.slots import PREFIX, RAW, TEXT, kinds, push


def test_the_last_tokens_stay():
    frames = list(torch.arange(24.0).reshape(4, 3, 2))
    state = push(RingCache(7), frames)
    assert kinds(state) == [TEXT] * PREFIX + [RAW] * 7
    assert torch.equal(state.slots.keys[0][0, PREFIX:], torch.cat(frames)[-7:])
    assert state.slots.info[PREFIX:, INDEX].tolist() == [PREFIX + index for index in range(5, 12)]
    assert kinds(push(RingCache(12), frames)).count(RAW) == 12
    assert torch.equal(push(RingCache(1), frames).slots.values[1][0, PREFIX:], -2 * frames[-1][-1:])
