"""Video-XL-2: chunks, what a frame attends to, and what a question reads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fewtokens.core.kv_memory import FIRST, LAST, MASS, STEP, Columns, KVSlots, KVState, slot_info
from fewtokens.methods.layers.video_xl_2 import VideoXL2, top_chunks
from tests.helpers.slots import PREFIX, RAW, SUMMARY, TEXT, Runs, kinds, push


def frames(count: int, tokens: int = 3) -> list[Tensor]:
    return list(torch.randn(count, tokens, 4, generator=torch.Generator().manual_seed(0)))


def oracle(needle: int, chunk: int):
    """Relevance of a question about the step `needle`."""
    return lambda slots: ((slots.info[:, STEP] // chunk == needle // chunk) & (slots.kind == SUMMARY)).float()


def nothing(slots: KVSlots) -> Tensor:
    raise AssertionError("no relevance is needed")


def pushed(spec: dict, count: int = 7) -> tuple[VideoXL2, KVState]:
    method = VideoXL2(**spec)
    return method, push(method, frames(count))


def test_without_dense_chunks_only_means_are_read():
    method, state = pushed({"dense": 0, "chunk": 2, "sparse": 4}, 6)
    read = method.read(state, nothing)
    assert read.kind.tolist() == [TEXT] * PREFIX + [SUMMARY] * 6
    every = torch.cat(frames(6))
    for chunk in range(3):
        rows = every[6 * chunk : 6 * chunk + 6]
        expected = torch.stack([rows[:4].mean(0), rows[4:].mean(0)])
        torch.testing.assert_close(read.keys[0][0, PREFIX + 2 * chunk : PREFIX + 2 * chunk + 2], expected)
    assert read.info[PREFIX:, MASS].tolist() == [4, 2] * 3
    assert read.info[PREFIX:, [FIRST, LAST]].tolist() == [[0, 1], [1, 1], [2, 3], [3, 3], [4, 5], [5, 5]]


def test_all_dense_chunks_are_the_tokens_bit_for_bit():
    method, state = pushed({"dense": 9, "chunk": 2})
    read = method.read(state, nothing)
    assert read.kind.tolist() == [TEXT] * PREFIX + [RAW] * 21
    assert torch.equal(read.keys[0][0, PREFIX:], torch.cat(frames(7)))
    assert torch.equal(read.values[1][0, PREFIX:], -2 * torch.cat(frames(7)))
    assert all(part.keys[0].device.type == "cpu" for part in state.host)


@pytest.mark.parametrize("needle", range(6))
def test_the_chunk_of_the_needle_is_read_in_full(needle):
    method, state = pushed({"dense": 1, "chunk": 2, "sparse": 3})
    read = method.read(state, oracle(needle, 2))
    dense = read.info[read.kind == RAW, STEP].unique().tolist()
    assert dense == [needle // 2 * 2, needle // 2 * 2 + 1, 6]  # and the chunk that is not full
    assert (read.info[PREFIX:, STEP].diff() >= 0).all()
    assert top_chunks(torch.tensor([0.1, 0.9, 0.2, 0.9]), 2) == [1, 3]
    assert top_chunks(torch.tensor([0.5, 0.5, 0.5]), 2) == [0, 1]


@pytest.mark.parametrize("previous", [0, 1, 2])
def test_a_frame_attends_to_its_chunk_and_the_ones_before(previous):
    method = VideoXL2(chunk=2, previous=previous)
    state = push(method, frames(6))
    runs = Runs(state)
    for step in (6, 7):
        method.write(Columns(frames(1)[0], slot_info(RAW, 3, step=step)), state, runs)
        context = runs.contexts[-1]
        steps = context.info[context.kind == RAW, STEP].unique().tolist()
        assert steps == list(range(6 - 2 * previous, step)) and not (context.kind == SUMMARY).any()


def test_beyond_the_cap_the_oldest_chunk_is_forgotten():
    method, state = pushed({"dense": 1, "chunk": 2, "sparse": 6, "cap": 2, "previous": 0}, 9)
    assert len(state.host) == 2 and kinds(state) == [TEXT] * PREFIX + [SUMMARY] * 2 + [RAW] * 3
    assert state.slots.info[state.slots.kind == SUMMARY, STEP].tolist() == [4, 6]
    assert method.read(state, oracle(4, 2)).info[PREFIX, STEP] == 4


def test_frames_without_tokens_end_a_chunk():
    """Step 3, the last of its chunk, has no tokens."""
    method, state = pushed({"chunk": 4, "sparse": 9, "previous": 0}, 3)
    assert not state.host
    state.steps = 4
    push(method, frames(1), state)
    assert len(state.host) == 1 and kinds(state) == [TEXT] * PREFIX + [SUMMARY] + [RAW] * 3


def test_arguments():
    for arguments, message in (
        ({"dense": -1}, "dense must be at least 0"),
        ({"sparse": 0}, "sparse must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            VideoXL2(**arguments)
