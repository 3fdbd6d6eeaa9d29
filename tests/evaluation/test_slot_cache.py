"""A stream in the cache of a reader: equal to all frames as slots where nothing is dropped, bounded where it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fewtokens
from fewtokens.core.kv_memory import RAW, SECOND, SUMMARY, KVSlots
from fewtokens.evaluation.longvideo.language import Question, Reads, collate, pose
from fewtokens.evaluation.longvideo.slot_cache import SlotCache
from tests.evaluation.test_longvideo_language import CODES, SCRIPT, generator, random_reader

FRAMES = SCRIPT.frames(0, 60)
SECONDS = torch.arange(60, dtype=torch.float32)


@pytest.fixture(scope="module")
def reader():
    model = random_reader()
    model.align(CODES, generator())
    with torch.no_grad():  # else a few words are always the most probable
        model.llm.get_output_embeddings().weight.normal_(generator=generator())
    return model


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return [question for part in pose(SCRIPT, 2, generator()).values() for question in part]


def held(reader, spec: str, frames: Tensor = FRAMES) -> SlotCache:
    (memory,) = fewtokens.build(spec)
    cache = SlotCache(reader, memory)
    for at in range(0, len(frames), 25):
        cache.push(frames[at : at + 25], SECONDS[: len(frames)][at : at + 25])
    return cache


def test_a_cache_without_a_limit_equals_all_frames_as_slots(reader, questions):
    spans = SECONDS[None, :, None].expand(-1, -1, 3)
    reads = Reads(FRAMES[None], spans, torch.ones(1, 60, dtype=torch.bool))
    cache = held(reader, "ring_cache(500)")
    ids, seconds, begin = collate([questions], reader.vocabulary)
    with torch.inference_mode():
        expected = reader(reads, ids, seconds)[0]
        for row, question in enumerate(questions):
            words = reader.vocabulary.encode(question.words)
            output, _ = cache._process(cache._embed(words, seconds[:, row : row + 1]), cache.state.slots, position=1)
            torch.testing.assert_close(output.last_hidden_state[0], expected[row, : len(words)], atol=1e-4, rtol=1e-4)
    answers = [cache.answer(question) for question in questions]
    assert [words for words, _ in answers] == reader.answer(reads, ids, seconds, begin)[0]
    assert len({tuple(words) for words, _ in answers}) > 3 and {count for _, count in answers} == {60}


@pytest.mark.parametrize("spec", ["ring_cache(12)", "videoscan_cache(12)", "videoscan_cache(12, rule='merge')"])
def test_bounded(spec, reader, questions):
    cache, longer = held(reader, spec, FRAMES[:30]), held(reader, spec)
    assert cache.state.nbytes == longer.state.nbytes
    assert longer.answer(questions[0])[1] == 12 and longer.state.steps == 60


def test_a_question_reads_the_chunk_that_it_attends_to_most(reader, questions):
    cache = held(reader, "video_xl_2(1, chunk=10, sparse=5)")
    chosen = set()
    for question in questions:
        words, second = reader.vocabulary.encode(question.words), torch.tensor([[question.second]])
        rated: list[tuple[KVSlots, Tensor]] = []

        def rate(slots: KVSlots, words=words, second=second, rated=rated) -> Tensor:
            rated.append((slots, cache._rate(words, second, slots)))
            return rated[0][1]

        with torch.inference_mode():
            read = cache.memory.read(cache.state, rate)
        ((slots, rates),) = rated
        assert bool((slots.kind == SUMMARY).all()) and bool((rates > 0).all()) and float(rates.sum()) < 1
        means = rates.unflatten(0, (6, 2)).mean(1)
        (dense,) = (read.info[read.kind == RAW, SECOND] // 10).unique().tolist()
        assert dense == int(means.argmax()) and cache.answer(question)[1] == len(read) == 5 * 2 + 10
        chosen.add(dense)
    assert len(chosen) > 1
