"""Timings: the parts add up to the whole, and what is slowed down shows in the part that it slows."""

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
WORDS = 4
# How many seconds each part shows when the stage takes one each time.
EXPECTED = {
    "decode": {"decode": 1}, "encode": {"encode": 1}, "reduce": {"reduce": 1}, "prefill": {"prefill": 1},
    "words": {"later": WORDS - 1},
}  # fmt: skip


def of_transformers(request):
    """A session, and what runs once in each stage."""
    session = Session(*loaded("llava_onevision"), "tome(keep=0.5)", 8)
    model = session.model
    return session, model.base_model.vision_tower, session.pipeline.methods[0], language_model(model).layers[1]


def of_composed(request):
    model = build(request.getfixturevalue("parts"), "tome(keep=0.5)").eval()
    first = next(module for module in model.encoder.modules() if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d))
    processor = ComposedProcessor(".", model, num_frames=4, read_size=32)
    return Session(model, processor), first, model.compressor.methods[0], model.llm.model.layers[1]


@pytest.mark.parametrize("where", EXPECTED)
@pytest.mark.parametrize("kind", [of_transformers, of_composed])
def test_what_is_slow_shows_where_it_is(kind, where, request, tmp_path, monkeypatch):
    """On a clock that moves only where something is slow."""
    session, encoder, method, layer = kind(request)
    now = [100.0]
    monkeypatch.setattr(clock_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def wait(module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        if where not in ("prefill", "words") or (hidden.shape[1] > 1) == (where == "prefill"):
            now[0] += 1

    if where == "decode":
        owner = sys.modules[type(session).__module__]
        real = owner.read
        monkeypatch.setattr(owner, "read", lambda *args, **more: (now.append(now.pop() + 1), real(*args, **more))[1])
    module = {"encode": encoder, "reduce": method, "prefill": layer, "words": layer}.get(where, nn.Identity())
    file = write(tmp_path / "clip.mp4", CLIP.frames, 8)
    session.warm_up()
    with module.register_forward_pre_hook(wait, with_kwargs=True):
        begun = now[0]
        answer = session.ask(file, QUESTION, WORDS)
        whole = now[0] - begun
    assert answer.new_tokens == WORDS
    found = {**answer.seconds, "later": answer.generation_seconds}
    assert {part: seconds for part, seconds in found.items() if seconds} == EXPECTED[where]
    assert answer.first_token + answer.generation_seconds == whole
    assert answer.speed == (1 if where == "words" else None)


@pytest.mark.parametrize("kind", [of_transformers, of_composed])
def test_parts_are_all_of_the_time(kind, request, monkeypatch):
    """On the clock of this process, which stands still while others run."""
    session, *_ = kind(request)
    session.warm_up()
    monkeypatch.setattr(clock_module, "time", SimpleNamespace(perf_counter=time.process_time))
    begun = time.process_time()
    answer = session.ask(CLIP, QUESTION, WORDS)
    whole = time.process_time() - begun
    # The rest is what `generate` does after the last word.
    assert 0.8 * whole < answer.first_token + answer.generation_seconds <= whole
    assert min(*answer.seconds.values(), answer.generation_seconds) > 0
    assert answer.speed == pytest.approx((WORDS - 1) / answer.generation_seconds)


def test_a_lap_leaves_nothing_out():
    clock = Clock(torch.device("cpu"))
    for stage in (*STAGES, "encode"):
        time.sleep(0.002)
        clock.lap(stage)
    assert sum(clock.seconds.values()) == pytest.approx(clock.last - clock.start)
    assert min(clock.seconds.values()) > 0 and set(clock.seconds) == set(STAGES)


@pytest.mark.parametrize("puts", [([5, 6], [7], [8]), ([5, 6], [], [7], [8])])
def test_the_first_token_is_the_first_that_is_said(puts):
    """`generate` puts in the ids of the prompt, and then nothing of the length 0 where it was given embeddings."""
    stream = stream_text(make_tokenizer("qwen2_vl"), None)
    for ids in puts[:-2]:
        stream.put(torch.tensor([ids], dtype=torch.int64))
    time.sleep(0.01)
    begun = time.perf_counter()
    for ids in puts[-2:]:
        stream.put(torch.tensor(ids))
        time.sleep(0.01)
    assert begun <= stream.first < stream.last and stream.last - stream.first >= 0.01
    assert stream.tokens == 2
