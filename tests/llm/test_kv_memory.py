"""Memories in the key-value cache: equal to the stock model where nothing is dropped, bounded, causal, bit-equal."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fewtokens.core.grid import Grid
from fewtokens.core.kv_memory import RAW, STEP, SUMMARY, Columns, KVState, position_ids, slot_info
from fewtokens.llm import Session, StreamSession, attach
from fewtokens.llm.layers.summary_tokens import SummaryTokens
from fewtokens.llm.prompts import ComposedProcessor
from fewtokens.video import Video, synthetic
from tests.llm.test_composed import build, parts  # noqa: F401
from tests.llm.test_session import FIRST, SECOND, loaded

CLIP = synthetic("shapes", frames=8, size=(64, 96), seed=1)
SUPPORTED = ("llava_onevision", "llava_next_video", "qwen2_vl")
ALL = "ring_cache(cap=2000)"


def stream(family: str, spec: str = ALL, frames: int = 8, chunk: int = 8, **options: Any) -> StreamSession:
    session = StreamSession(*loaded(family), spec, **options)
    for at in range(0, frames, chunk):
        session.push(CLIP.frames[at : min(at + chunk, frames)], CLIP.times[at : min(at + chunk, frames)])
    return session


def state(session: StreamSession) -> KVState:
    return session._state


def logits(session: StreamSession, question: str = FIRST) -> Tensor:
    """The logits of the prompt after the video."""
    with torch.no_grad():
        return session._kv.prefill(state(session), question)


def stock_logits(family: str, question: str = FIRST, frames: int = 8) -> Tensor:
    model, processor = loaded(family)
    inputs = processor(model, Video(CLIP.frames[:frames], CLIP.times[:frames]), question)
    with torch.no_grad():
        return model(**inputs).logits[0]


def assert_same(first: KVState, second: KVState) -> None:
    ours, theirs = first.tensors(), second.tensors()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("positions", ["contiguous", "absolute"])
@pytest.mark.parametrize("family", SUPPORTED)
def test_nothing_dropped_is_the_stock_model(family, positions):
    session = stream(family, f"ring_cache(cap=2000, positions={positions!r})", chunk=3)
    expected = stock_logits(family)
    ours = logits(session)
    torch.testing.assert_close(ours, expected[-len(ours) :], atol=1e-4, rtol=1e-4)
    model, processor = loaded(family)
    whole = Session(model, processor, "", 8).ask(CLIP, FIRST, 6)
    answer = session.ask(FIRST, 6)
    assert answer.text == whole.text
    assert (answer.tokens, answer.cells, answer.prompt_tokens) == (whole.tokens, whole.cells, whole.prompt_tokens)


MEMORIES = (
    "ring_cache(cap=20)",
    "videoscan_cache(cap=3)",
    "videoscan_cache(cap=3, rule='merge')",
    "video_xl(4, window=24, cap=9)",
)


@pytest.mark.parametrize("spec", MEMORIES)
@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_vl"])
def test_any_chunks_any_moment_and_a_snapshot_are_bit_equal(family, spec, tmp_path):
    session = stream(family, spec, 7)
    before = {name: tensor.clone() for name, tensor in state(session).tensors().items()}
    first = session.ask(FIRST, 3).text
    session.ask(SECOND, 2)
    assert session.ask(FIRST, 3).text == first
    for name, tensor in state(session).tensors().items():
        assert torch.equal(tensor, before[name])
    other = stream(family, spec, 7, chunk=1)
    assert_same(state(session), state(other))
    back = StreamSession(*loaded(family), spec)
    back.restore(session.snapshot(tmp_path / "state.safetensors"))
    assert back.ask(FIRST, 3).text == other.ask(FIRST, 3).text == first
    assert back.nbytes == session.nbytes and (back.frames, back.second) == (7, session.second)
    for each in (session, other, back):
        each.push(CLIP.frames[7:], CLIP.times[7:])
    assert_same(state(session), state(other))
    assert_same(state(session), state(back))


@pytest.mark.parametrize("spec", MEMORIES)
def test_a_file_is_the_stream_of_its_frames(spec):
    model, processor = loaded("llava_onevision")
    session = Session(model, processor, spec, 8)
    answer, streamed = session.ask(CLIP, FIRST, 4), stream("llava_onevision", spec).ask(FIRST, 4)
    assert answer.text == streamed.text
    assert (answer.tokens, answer.cells, answer.prompt_tokens) == (
        streamed.tokens, streamed.cells, streamed.prompt_tokens,
    )  # fmt: skip
    again = session.ask(CLIP, SECOND, 4)
    assert again.seconds["encode"] == 0 and again.text == stream("llava_onevision", spec).ask(SECOND, 4).text


def test_methods_before_the_memory():
    """A frame of which no token is left has no carrier."""
    slots = state(stream("llava_onevision", "dtd | ring_cache(cap=500)")).slots
    frames = slots.info[slots.kind == RAW, STEP].unique()
    assert stream("llava_onevision", "dtd | videoscan_cache(cap=20)").ask(FIRST, 2).tokens == len(frames) == 7
    assert len(state(stream("llava_onevision", "tail_drop(keep='4/frame') | ring_cache(cap=500)")).slots) == 2 + 32


def test_a_stream_of_100000_tokens_stays_within_the_trained_positions():
    """Each pass has fewer positions than the context, 2048, and the state does not grow."""
    session = stream("llava_onevision", "ring_cache(cap=16)", 1)
    kv, frame = session._kv, torch.randn(256, 32, generator=torch.Generator().manual_seed(0))
    memory, sizes = kv.start(Grid(1, 16, 16), session._others), set()
    places = torch.stack(torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij"), -1).reshape(-1, 2)
    with torch.no_grad():
        for second in range(391):
            kv.push(memory, frame.roll(second, 0), places, float(second))
            sizes.add(memory.nbytes)
    assert memory.columns > 100_000 and len(sizes) == 1
    assert int(position_ids(memory.slots.info, 1).max()) == len(memory.slots) - 1 == 17
    limited = stream("llava_onevision", "ring_cache(cap=16, positions='absolute')", 1)
    memory = limited._kv.start(Grid(1, 16, 16), limited._others)
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match=r"position 2049 is beyond .*, 2048; use positions='contiguous'"),
    ):
        for second in range(8):
            limited._kv.push(memory, frame, places, float(second))


@pytest.mark.parametrize(
    ("family", "message"),
    [("qwen3_vl", "text between frames"), ("smolvlm", "text between frames"), ("internvl", "text between frames")],
)
def test_other_families_are_refused(family, message):
    with pytest.raises(ValueError, match=message):
        StreamSession(*loaded(family), ALL)


def test_a_composed_model(parts):  # noqa: F811
    model = build(parts).eval()
    processor = ComposedProcessor(parts / "llm", model, num_frames=8, read_size=32)
    session = StreamSession(model, processor, ALL)
    session.push(CLIP)
    whole, answer = Session(model, processor, "").ask(CLIP, "what happens", 4), session.ask("what happens", 4)
    assert (answer.text, answer.tokens, answer.prompt_tokens) == (whole.text, whole.tokens, whole.prompt_tokens)
    with torch.no_grad():
        expected = model(**processor(model, CLIP, "what happens")).logits[0]
    ours = logits(session, "what happens")
    torch.testing.assert_close(ours, expected[-len(ours) :], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spec", [ALL, *MEMORIES])
def test_a_prompt_that_begins_with_the_video(parts, spec):  # noqa: F811
    model = build(parts).eval()
    model.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    processor = ComposedProcessor(parts / "llm", model, num_frames=8, read_size=32)
    session = StreamSession(model, processor, spec)
    session.push(CLIP)
    ours = logits(session, "what is in the video")
    assert len(ours) == 5 and bool(ours.isfinite().all())
    if spec == ALL:
        with torch.no_grad():
            expected = model(**processor(model, CLIP, "what is in the video")).logits[0]
        torch.testing.assert_close(ours, expected[-len(ours) :], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", SUPPORTED)
def test_videos_of_other_sizes_do_not_change_a_cached_one(family):
    wide = synthetic("pan", frames=8, size=(32, 160), seed=2)
    session = Session(*loaded(family), ALL, 8)
    first = session.ask(CLIP, FIRST, 6)
    held = session._slots[next(iter(session._encoded.values()))]
    with torch.no_grad():
        before = session._stream.prefill(held, FIRST)
    alone = Session(*loaded(family), ALL, 8).ask(wide, FIRST, 6)
    assert (other := session.ask(wide, FIRST, 6)).text == alone.text and other.cells == alone.cells
    again = session.ask(CLIP, FIRST, 6)
    assert (again.text, again.cells, again.seconds["encode"]) == (first.text, first.cells, 0)
    with torch.no_grad():
        assert torch.equal(session._stream.prefill(held, FIRST), before)


@pytest.mark.parametrize("kind", [Session, StreamSession])
def test_methods_inside_a_composed_model_are_not_skipped(kind, parts):  # noqa: F811
    model = build(parts, "videollm_mod(keep=0.5)").eval()
    processor = ComposedProcessor(parts / "llm", model, num_frames=8, read_size=32)
    with pytest.raises(ValueError, match="methods inside its language model, which ring_cache would skip"):
        kind(model, processor, ALL)


def test_errors():
    model, processor = loaded("llava_onevision")
    with pytest.raises(ValueError, match="is a memory in the key-value cache; use a Session"), attach(model, ALL):
        pass
    for spec, message in {
        "ring_cache | fastv(layer=1)": "fastv cannot drop", "ring | ring_cache": "followed by another memory",
        "kmeans(keep=4) | ring_cache": "not causal",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=message):
            StreamSession(model, processor, spec)
    for kind in (Session, StreamSession):
        with pytest.raises(ValueError, match="layout and positions have no effect with ring_cache"):
            kind(model, processor, ALL, positions="keep")
    session = stream("llava_onevision")
    with pytest.raises(ValueError, match=r"goes back from 0\.875 s to 0\.000 s; start another session"):
        session.push(CLIP.frames[:1], [0.0])
    with pytest.raises(ValueError, match="context of this model is 2048; use a smaller memory"):
        session.ask(FIRST, 2000)
    with pytest.raises(ValueError, match="no frame was pushed yet"):
        StreamSession(model, processor, ALL).ask(FIRST)


def columns(session: StreamSession, count: int, seed: int = 0) -> Columns:
    """Random visual columns of one frame."""
    embeddings = torch.randn(count, 32, generator=torch.Generator().manual_seed(seed))
    return Columns(embeddings, slot_info(RAW, count, second=1.0))


def written(session: StreamSession, pieces: list[Columns]) -> KVState:
    """The state after pieces of visual columns."""
    kv = session._kv
    memory = kv.start(Grid(1, 4, 4), session._others)
    with torch.no_grad():
        for piece in pieces:
            kv.method.write(piece, memory, partial(kv._run, memory))
    return memory


@pytest.mark.parametrize("attention", ["full_coverage", "step_expansion"])
def test_video_xl_in_any_chunks_gives_the_same_summaries(attention):
    session = stream("llava_onevision", f"video_xl(4, window=12, cap=None, attention={attention!r})", 1)
    every = columns(session, 30)
    once = written(session, [every]).slots
    for cuts in ([0, 3, 8, 30], list(range(31)), [0, 12, 24, 30], [0, 13, 30]):
        slots = written(session, [every.take(a, b) for a, b in pairwise(cuts)]).slots
        assert torch.equal(slots.info, once.info) and (slots.kind == SUMMARY).sum() == 7
        for ours, theirs in zip((*slots.keys, *slots.values), (*once.keys, *once.values), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    # No summary depends on a later token.
    changed = Columns(every.embeddings.clone(), every.info)
    changed.embeddings[17:] += 1
    slots = written(session, [changed]).slots
    for ours, theirs in zip((*slots.keys, *slots.values), (*once.keys, *once.values), strict=True):
        assert torch.equal(ours[:, : 2 + 4], theirs[:, : 2 + 4])
    assert not torch.equal(slots.keys[1][:, 6], once.keys[1][:, 6])


def test_video_xl_with_copied_projections_and_all_tokens_held_is_the_stock_model():
    """At ratio 1, in a window that does not end, with summaries that only they see themselves."""
    session = stream("llava_onevision", "video_xl(1, window=5000, attention='step_expansion')")
    session._kv.runtime.use(SummaryTokens(session.model))
    assert (state(session).slots.kind == SUMMARY).sum() == 8 * 16
    ours = logits(session)
    torch.testing.assert_close(ours, stock_logits("llava_onevision")[-len(ours) :], atol=1e-4, rtol=1e-4)
    # Seen, they change the logits.
    full = logits(stream("llava_onevision", "video_xl(1, window=5000)"))
    assert (full - ours).abs().max() > 1e-3


def test_summary_tokens_are_trained_and_loaded(tmp_path):
    """Gradients reach every copy, the loss of an answer falls, and a file gives the same logits."""
    session = stream("llava_onevision", "video_xl(4, window=32)", 0)
    kv, model = session._kv, session.model
    summaries = SummaryTokens(model)
    kv.runtime.use(summaries)
    frozen = [parameter.requires_grad_(False) for parameter in model.parameters()]
    with torch.no_grad():
        visual = [session._encode([(frame, float(t))])[0] for t, frame in enumerate(CLIP.frames[:5])]
    answer, optimizer, losses = torch.tensor([7, 9, 11]), torch.optim.AdamW(summaries.parameters(), lr=1e-2), []

    def loss() -> Tensor:
        memory = kv.start(visual[0].layout.grid, session._others)
        for t, each in enumerate(visual):
            rows = each.layout.cells("cpu")
            kv.push(memory, each.features[rows], torch.zeros(len(rows), 2), float(t))
        return F.cross_entropy(kv.prefill(memory, FIRST)[-3:], answer)

    for _ in range(6):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        losses.append(value.item())
        optimizer.step()
    assert summaries.embedding.grad.abs().sum() > 0
    for name, copy in summaries.projections.items():
        # Nothing reads what a summary attends to in the last layer.
        assert name == "layers.2.self_attn.q_proj" or copy.weight.grad.abs().sum() > 0
    assert losses[-1] < 0.9 * losses[0]
    for parameter in frozen:
        parameter.requires_grad_(True)
    path = summaries.save(tmp_path / "summaries.safetensors")
    loaded_session = stream("llava_onevision", f"video_xl(4, window=32, checkpoint={str(path)!r})")
    trained = logits(loaded_session)
    kv.runtime.use(summaries)
    session.push(CLIP)
    assert torch.equal(logits(session), trained)
    assert (logits(stream("llava_onevision", "video_xl(4, window=32)")) - trained).abs().max() > 1e-3
    with pytest.raises(ValueError, match="summary tokens"):
        stream("llava_onevision", f"video_xl(checkpoint={str(session.snapshot(tmp_path / 'state.safetensors'))!r})")


def test_video_xl_2_with_all_chunks_is_attention_with_the_mask_of_chunks():
    """Three chunks of two frames, each of which sees the one before, against the stock layers with this mask."""
    spec = "video_xl_2(dense=3, chunk=2, sparse=5, previous=1, positions='absolute')"
    session = stream("llava_onevision", spec, 6)
    model, processor = loaded("llava_onevision")
    kv, memory = session._kv, state(session)
    ids = processor(model, Video(CLIP.frames[:6], CLIP.times[:6]), FIRST)["input_ids"][0]
    chunk = torch.full((len(ids),), -1)
    video = (ids == model.config.video_token_id).nonzero().squeeze(1)[:-1]  # the last is the newline
    chunk[video] = torch.arange(len(video)) // 32
    end = int(video[-1])
    seen = (chunk[:, None] - chunk[None]).clamp(min=0) <= 1
    seen |= (torch.arange(len(ids)) > end)[:, None] | (chunk < 0)[None]
    seen &= torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    with torch.no_grad():
        rows = [session._encode([(frame, 0.0)])[0] for frame in CLIP.frames[:6]]
        features = torch.cat([row.features[row.layout.cells("cpu")] for row in rows])
        embeddings = torch.cat([kv.runtime.embed(ids[: video[0]]), features, kv._question(memory, FIRST).embeddings])
        mask = torch.zeros(1, 1, *seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        hidden = kv.runtime.text(inputs_embeds=embeddings[None], attention_mask=mask, use_cache=False)
        expected = kv.runtime.logits(hidden.last_hidden_state[0, end + 1 :])
        torch.testing.assert_close(logits(session), expected, atol=1e-4, rtol=1e-4)
        # Reading one chunk, by the question's own attention, gives others.
        kv.method.dense = 1
        assert (logits(session) - expected).abs().max() > 1e-3
    assert len(memory.host) == 3 and session.ask(FIRST, 2).tokens == 32 + 2 * 7


HALF = (ALL, *MEMORIES, "video_xl_2(dense=1, chunk=2, sparse=4, previous=1)")


@pytest.mark.parametrize(
    ("family", "spec"), [("qwen2_vl", ALL), ("qwen2_vl", MEMORIES[2]), *(("llava_onevision", spec) for spec in HALF)]
)
def test_half_precision(family, spec, tmp_path):
    """The state is bfloat16 and bit-equal in any chunks, and logits are close to those of float32."""
    model, processor = loaded(family)
    half = deepcopy(model).bfloat16()

    def push(chunk: int) -> StreamSession:
        session = StreamSession(half, processor, spec)
        for at in range(0, 8, chunk):
            session.push(CLIP.frames[at : at + chunk], CLIP.times[at : at + chunk])
        return session

    session, full = push(8), stream(family, spec)
    slots = state(session).slots
    assert {part.dtype for part in (*slots.keys, *slots.values)} == {torch.bfloat16}
    assert torch.equal(slots.info[:, STEP], state(full).slots.info[:, STEP])
    assert_same(state(session), state(push(3)))
    ours, expected = logits(session), logits(full)
    assert ours.dtype == torch.bfloat16 and bool(ours.isfinite().all())
    assert float((ours.float() - expected).norm() / expected.norm()) < 0.05
    first = session.ask(FIRST, 3).text
    again = StreamSession(half, processor, spec)
    again.restore(session.snapshot(tmp_path / "state.safetensors"))
    assert_same(state(session), state(again))
    assert again.ask(FIRST, 3).text == first
