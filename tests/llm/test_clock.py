"""Timings: the stages add up to the total, and a slow stage is attributed correctly."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fewtokens.llm import Session
from fewtokens.llm import clock as clock_module
from fewtokens.llm.clock import STAGES, Clock, stream_text
from fewtokens.llm.layers.hooks import language_model
from fewtokens.llm.prompts import ComposedProcessor
from fewtokens.video import synthetic, write
from tests.llm.saved import make_tokenizer
from tests.llm.test_composed import build, parts  # noqa: F401, a fixture
from tests.llm.test_session import loaded

CLIP = synthetic("static", frames=8, size=(64, 96))
QUESTION = "what happens"
NUM_TOKENS = 4
# The seconds of each stage if each run of the slow stage takes one second.
EXPECTED = {
    "decode": {"decode": 1}, "encode": {"encode": 1}, "reduce": {"reduce": 1}, "prefill": {"prefill": 1},
    "generate": {"generation": NUM_TOKENS - 1},
}  # fmt: skip


def transformers_session(request):
    """A session, and a module that runs once in each stage."""
    session = Session(*loaded("llava_onevision"), "tome(keep=0.5)", 8)
    model = session.model
    return session, model.base_model.vision_tower, session.pipeline.methods[0], language_model(model).layers[1]


def composed_session(request):
    model = build(request.getfixturevalue("parts"), "tome(keep=0.5)").eval()
    first = next(module for module in model.encoder.modules() if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d))
    processor = ComposedProcessor(".", model, num_frames=4, read_size=32)
    return Session(model, processor), first, model.compressor.methods[0], model.llm.model.layers[1]


@pytest.mark.parametrize("slow_stage", EXPECTED)
@pytest.mark.parametrize("make_session", [transformers_session, composed_session])
def test_a_slow_stage_is_attributed_correctly(make_session, slow_stage, request, tmp_path, monkeypatch):
    """Time is mocked and advances only in the slow stage."""
    session, encoder, method, layer = make_session(request)
    now = [100.0]
    monkeypatch.setattr(clock_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def wait(module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        if slow_stage not in ("prefill", "generate") or (hidden.shape[1] > 1) == (slow_stage == "prefill"):
            now[0] += 1

    if slow_stage == "decode":
        owner = sys.modules[type(session).__module__]
        original = owner.read
        monkeypatch.setattr(
            owner, "read", lambda *args, **kwargs: (now.append(now.pop() + 1), original(*args, **kwargs))[1]
        )
    module = {"encode": encoder, "reduce": method, "prefill": layer, "generate": layer}.get(slow_stage, nn.Identity())
    file = write(tmp_path / "clip.mp4", CLIP.frames, 8)
    session.warm_up()
    with module.register_forward_pre_hook(wait, with_kwargs=True):
        start = now[0]
        answer = session.ask(file, QUESTION, NUM_TOKENS)
        total = now[0] - start
    assert answer.new_tokens == NUM_TOKENS
    actual = {**answer.seconds, "generation": answer.generation_seconds}
    assert {part: seconds for part, seconds in actual.items() if seconds} == EXPECTED[slow_stage]
    assert answer.first_token + answer.generation_seconds == total
    assert answer.speed == (1 if slow_stage == "generate" else None)


@pytest.mark.parametrize("make_session", [transformers_session, composed_session])
def test_stages_add_up_to_the_total(make_session, request, monkeypatch):
    """Measured in process time, which excludes other processes."""
    session, *_ = make_session(request)
    session.warm_up()
    monkeypatch.setattr(clock_module, "time", SimpleNamespace(perf_counter=time.process_time))
    start = time.process_time()
    answer = session.ask(CLIP, QUESTION, NUM_TOKENS)
    total = time.process_time() - start
    # The rest is the work of `generate` after the last token.
    assert 0.8 * total < answer.first_token + answer.generation_seconds <= total
    assert min(*answer.seconds.values(), answer.generation_seconds) > 0
    assert answer.speed == pytest.approx((NUM_TOKENS - 1) / answer.generation_seconds)


def test_laps_have_no_gaps():
    clock = Clock(torch.device("cpu"))
    for stage in (*STAGES, "encode"):
        time.sleep(0.002)
        clock.lap(stage)
    assert sum(clock.seconds.values()) == pytest.approx(clock.last - clock.start)
    assert min(clock.seconds.values()) > 0 and set(clock.seconds) == set(STAGES)


@pytest.mark.parametrize("pieces", [([5, 6], [7], [8]), ([5, 6], [], [7], [8])])
def test_the_prompt_is_not_timed(pieces):
    """`generate` first puts the ids of the prompt, and after a prompt of embeddings an empty tensor."""
    stream = stream_text(make_tokenizer("qwen2_vl"), None)
    for ids in pieces[:-2]:
        stream.put(torch.tensor([ids], dtype=torch.int64))
    time.sleep(0.01)
    start = time.perf_counter()
    for ids in pieces[-2:]:
        stream.put(torch.tensor(ids))
        time.sleep(0.01)
    assert start <= stream.first < stream.last and stream.last - stream.first >= 0.01
    assert stream.tokens == 2
