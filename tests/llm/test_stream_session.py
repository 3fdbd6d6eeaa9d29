"""Questions about a stream: any chunks, any time, bounded state, snapshots; equal to a whole video that fits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fewtokens.core import files
from fewtokens.llm import Session, StreamSession, VideoLLM, attach
from fewtokens.video import Video, synthetic
from tests.llm.test_composed import parts  # noqa: F401
from tests.llm.test_session import FIRST, SECOND, loaded
from tests.llm.tiny import FAMILIES, TUBELET

CLIP = synthetic("shapes", frames=8, size=(64, 96), seed=1)
FEW = "moviechat(cap=2, short=2, slots=1)"


def stream(family: str, spec: str = FEW, **options: Any) -> StreamSession:
    return StreamSession(*loaded(family), spec, **options)


def push(session: StreamSession, frames: int = 8, chunk: int = 8, start: int = 0) -> StreamSession:
    for at in range(start, frames, chunk):
        session.push(CLIP.frames[at : min(at + chunk, frames)], CLIP.times[at : min(at + chunk, frames)])
    return session


@pytest.fixture
def prompts(monkeypatch) -> Any:
    """Collects the inputs of `generate` of a model."""

    def watch(model: Any) -> list[dict[str, Any]]:
        inputs: list[dict[str, Any]] = []
        real = model.generate
        monkeypatch.setattr(model, "generate", lambda **given: inputs.append(given) or real(**given))
        return inputs

    return watch


def features(inputs: dict[str, Any]) -> list[torch.Tensor]:
    (outputs,) = inputs["mm_encoder_outputs"].values()
    rows = list(outputs["pooler_output"])
    return [*rows, *(row for layer in outputs.get("deepstack_features") or [] for row in layer)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stream_that_fits_the_memory_is_the_whole_video(family, prompts):
    model, processor = loaded(family)
    inputs = prompts(model)
    whole = Session(model, processor, "", 8).ask(CLIP, FIRST, 3)
    answer = push(stream(family, f"ring(cap={8 // TUBELET.get(family, 1)})")).ask(FIRST, 3)
    full, mine = inputs
    assert torch.equal(mine["input_ids"], full["input_ids"])
    assert ("position_ids" in mine) == ("position_ids" in full)
    if "position_ids" in full:
        assert torch.equal(mine["position_ids"], full["position_ids"])
    for ours, theirs in zip(features(mine), features(full), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert answer.text == whole.text
    assert (answer.tokens, answer.cells, answer.prompt_tokens) == (whole.tokens, whole.cells, whole.prompt_tokens)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl", "qwen3_vl", "smolvlm"])
def test_any_chunks_any_moment_and_a_snapshot_are_bit_equal(family, prompts, tmp_path):
    inputs = prompts(loaded(family)[0])
    once = push(stream(family), 7)
    first = once.ask(FIRST, 3)
    once.ask(SECOND, 2)
    again = once.ask(FIRST, 3)
    other = push(stream(family), 7, chunk=1)
    cut = other.ask(FIRST, 3)
    back = stream(family)
    back.restore(once.snapshot(tmp_path / "state.safetensors"))
    restored = back.ask(FIRST, 3)
    assert first.text == again.text == cut.text == restored.text
    for given in inputs[2:]:
        assert torch.equal(given["input_ids"], inputs[0]["input_ids"])
        for ours, theirs in zip(features(given), features(inputs[0]), strict=True):
            assert torch.equal(ours, theirs)
    # Questions in between change nothing, and a restored session goes on bit-equally.
    assert back.nbytes == once.nbytes and (back.frames, back.second) == (7, once.second)
    inputs.clear()
    for session in (push(stream(family), 8, chunk=3), push(once, 8, 1, 7), push(back, 8, 1, 7)):
        session.ask(FIRST, 2)
    for given in inputs[1:]:
        for ours, theirs in zip(features(given), features(inputs[0]), strict=True):
            assert torch.equal(ours, theirs)


def test_the_state_does_not_grow():
    session, sizes = stream("qwen3_vl", trigger=0.1), set()
    for second in range(500):
        session.push(CLIP.frames[second % 8 : second % 8 + 1])
        if second > 8:
            sizes.add((second % 2, session.nbytes))
    assert session.frames == 500 and session.second == 499
    # A frame waits for the second one of its tubelet.
    assert len(sizes) == 2


def test_positions_count_seconds(prompts):
    model, _ = loaded("qwen2_5_vl")  # 4 positions per second
    inputs = prompts(model)
    session = stream("qwen2_5_vl", "ring(cap=3)")
    seconds = torch.tensor([0.0, 0.0, 2.0, 2.0, 9.0, 9.0, 40.0, 40.0], dtype=torch.float64)
    session.push(CLIP.frames, seconds)
    session.ask(FIRST, 2)
    visual = inputs[0]["input_ids"][0] == model.config.video_token_id
    time = inputs[0]["position_ids"][1, 0, visual]
    expected = 4 * (torch.tensor([2.0, 9.0, 40.0]) - 2).repeat_interleave(6)
    assert (time - time[0] - expected).abs().max() <= 1
    # A span beyond the context of 2048 is scaled down, in proportion.
    session.push(CLIP.frames[:2], [4000.0, 4000.0])
    session.ask(FIRST, 2)
    time = inputs[1]["position_ids"][1, 0, visual]
    share = (time - time[0]).double() / (time[-1] - time[0])
    exact = (torch.tensor([9.0, 40.0, 4000.0]).double() - 9).repeat_interleave(6) / 3991
    assert 1900 < inputs[1]["position_ids"].max() < 2046 and (share - exact).abs().max() < 1e-3


def test_the_prompt_names_the_second_of_a_slot(monkeypatch):
    session = stream("qwen3_vl", "moviechat(cap=1, short=1, slots=1)")
    texts: list[str] = []
    real = session.processor.ids
    monkeypatch.setattr(session.processor, "ids", lambda question, text: texts.append(text) or real(question, text))
    session.push(CLIP.frames, [10.0, 10.0, 12.0, 12.0, 20.0, 20.0, 22.0, 22.0])
    session.ask(FIRST, 2)
    assert texts[0].startswith("<16.0 seconds>") and texts[0].count("seconds") == 1


def test_a_snapshot_of_half_a_tubelet(tmp_path):
    session, back = push(stream("qwen2_vl"), 1), stream("qwen2_vl")
    back.restore(session.snapshot(tmp_path / "state.safetensors"))
    assert push(back, 5, 2, 1).ask(FIRST, 3).text == push(stream("qwen2_vl"), 5).ask(FIRST, 3).text


def test_methods_before_the_memory(tmp_path):
    spec = "dtd(tau=1.0) | tail_drop(keep='4/frame') | ring(cap=3)"
    session = push(stream("llava_onevision", spec))
    answer = session.ask(FIRST, 3)
    assert answer.tokens == 12 and answer.cells == 8 * 16
    assert push(stream("llava_onevision", spec), chunk=1).ask(FIRST, 3).text == answer.text
    back = stream("llava_onevision", spec)
    back.restore(session.snapshot(tmp_path / "state.safetensors"))
    assert back.nbytes == session.nbytes
    with pytest.raises(ValueError, match=r"dtd.* leaves 14 tokens of this frame and 16 of earlier ones"):
        push(stream("llava_onevision", "dtd | ring(cap=3)"))


def test_a_scene_change_is_reported_once():
    session, clip = stream("llava_onevision", trigger=0.1), synthetic("static", frames=1, size=(64, 96))
    other = synthetic("shapes", frames=1, size=(64, 96), seed=3)
    begins = [session.push((other if 40 <= second < 60 else clip).frames, [float(second)]) for second in range(80)]
    assert [second for each in begins for second in each] == [40.0, 60.0]


def test_times_that_go_back():
    for family in ("llava_onevision", "qwen2_5_vl"):
        session = stream(family)
        with pytest.raises(ValueError, match=r"goes back from 1\.000 s to 0\.500 s.*on_jump='shift'"):
            session.push(CLIP.frames[:4], [0.0, 1.0, 0.5, 2.0])
        assert session.frames == 2 and session.second == 1
        session.push(CLIP.frames[:2], [1.0, 3600.0])  # equal times and gaps are legal
        reset = stream(family, "ring(cap=8, on_jump='reset')")
        reset.push(CLIP.frames[:6], [5.0, 6.0, 7.0, 8.0, 0.0, 1.0])
        fresh = stream(family, "ring(cap=8)")
        fresh.push(CLIP.frames[4:6], [0.0, 1.0])
        assert reset.ask(FIRST, 3).text == fresh.ask(FIRST, 3).text


def test_errors(tmp_path):
    model, processor = loaded("llava_onevision")
    for spec, message in {
        "": "requires a memory", "kmeans(keep=5)": "requires a memory", "ring | moviechat": "followed by another",
        "kmeans(keep=5) | ring": "not causal", "moviechat | kmeans(keep=5)": "requires a memory",
        "tome_in_encoder | ring": "inside the vision tower",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=message):
            StreamSession(model, processor, spec)
    session = StreamSession(model, processor, FEW)
    for call in (lambda: session.ask(FIRST), lambda: session.snapshot(tmp_path / "a.safetensors")):
        with pytest.raises(ValueError, match="no frame was pushed yet"):
            call()
    with pytest.raises(ValueError, match="must be uint8"):
        session.push(CLIP.frames.float())
    with pytest.raises(ValueError, match="need as many times"):
        session.push(CLIP.frames, [0.0])
    with pytest.raises(ValueError, match="must be finite"):
        session.push(CLIP.frames[:1], [float("nan")])
    session.push(CLIP)
    with pytest.raises(ValueError, match="96x64 pixels, got 48x32"):
        session.push(CLIP.frames[..., ::2, ::2])
    with pytest.raises(ValueError, match=r"context of this model is 2048; use a smaller memory"):
        session.ask(FIRST, 5000)
    path = session.snapshot(tmp_path / "state.safetensors")
    for other, message in (
        (stream("llava_onevision", "ring"), "is of a session with moviechat"),
        (stream("internvl"), "with llava_onevision, not with internvl"),
        (stream("llava_onevision", trigger=0.1), "with no trigger"),
    ):
        with pytest.raises(ValueError, match=message):
            other.restore(path)
    tensors, header = files.load(path, "stream")
    kept = {name: header[name] for name in ("spec", "family", "shape", "frames", "last", "pending")}
    files.save(path, "stream", {name: value for name, value in tensors.items() if name != "memory.1"}, kept)
    with pytest.raises(ValueError, match="is incomplete"):
        session.restore(path)
    files.save(path, "stream", tensors, {name: value for name, value in kept.items() if name != "frames"})
    session.push(CLIP)
    with pytest.raises(ValueError, match="is incomplete"):
        session.restore(path)
    with pytest.raises(ValueError, match="no frame"):  # nothing of the file is left
        session.ask(FIRST, 2)
    assert session.second is None
    files.save(path, "stream", {name: value.float() for name, value in tensors.items()}, kept)
    with pytest.raises(ValueError, match="is of another model"):
        session.restore(path)


@pytest.mark.parametrize(
    "spec", ["ring(cap=2)", "moviechat(cap=2, short=2)", "tome_cap(cap=2, recent=2)", "videoscan(cap=2)"]
)
def test_memories_reduce_whole_videos(spec):
    model, processor = loaded("qwen3_vl")
    answer = Session(model, processor, spec, 8).ask(CLIP, FIRST, 3)
    assert 0 < answer.tokens < answer.cells
    inputs = processor(model, CLIP, FIRST)
    with attach(model, spec) as few:
        ids = few.generate(**inputs, max_new_tokens=3, do_sample=False)
    text = processor.tokenizer.decode(ids[0, answer.prompt_tokens :], skip_special_tokens=True)
    assert text == answer.text


@pytest.mark.filterwarnings("ignore:.*has random weights")
@pytest.mark.parametrize("family", ["llava_onevision", "qwen3_vl"])
def test_a_memory_that_selects_receives_the_question(family, prompts, monkeypatch):
    """Also with DeepStack features, which are further channels of the memory."""
    model, processor = loaded(family)
    inputs, dim = prompts(model), processor_dim(family)
    session = push(stream(family, f"videostreaming(cap=8, clip=1, tokens=1, top=1, num_layers=1, dim={dim})"))
    texts: list[torch.Tensor] = []
    real = session.memory.read
    monkeypatch.setattr(session.memory, "read", lambda state, **cues: texts.append(cues["text"]) or real(state, **cues))
    before = session.nbytes
    answers = [session.ask(question, 2) for question in (FIRST, SECOND, FIRST)]
    # One of the clips, and the same one for the same question.
    assert [answer.tokens for answer in answers] == [1, 1, 1] and session.nbytes == before
    assert all(map(torch.equal, features(inputs[0]), features(inputs[2])))
    ids = processor.tokenizer(FIRST, add_special_tokens=False, return_tensors="pt")["input_ids"]
    embedded = model.get_input_embeddings()(ids)
    assert torch.equal(texts[0][..., : embedded.shape[2]], embedded) and not texts[0][..., embedded.shape[2] :].any()
    assert not torch.equal(texts[0], texts[1])


@pytest.mark.filterwarnings("ignore:.*has random weights")
def test_a_session_reduces_for_each_question():
    session = Session(*loaded("llava_onevision"), "videostreaming(cap=8, clip=1, tokens=4, top=2, num_layers=1)", 8)
    assert session.per_question
    assert session.ask(CLIP, FIRST, 2).tokens == 8


def processor_dim(family: str) -> int:
    """Channels of the features in a memory: those of the language model, and of DeepStack layers."""
    session = push(stream(family, "ring(cap=2)"), 2)
    assert session._state is not None
    return session._state.slots.features.shape[3]


def test_the_default_memory_and_a_video_as_chunk():
    session = VideoLLM(*loaded("llava_onevision")).stream_session()
    session.push(Video(CLIP.frames[:7], CLIP.times[:7] + 100))
    assert session.second == float(CLIP.times[6]) + 100 and session.ask(FIRST, 2).tokens == 7 * 16


def test_a_composed_model(parts):  # noqa: F811
    from fewtokens.llm.prompts import ComposedProcessor
    from tests.llm.test_composed import build

    for options in ({}, {"positions": "renumber"}):
        model = build(parts, **options).eval()
        processor = ComposedProcessor(parts / "llm", model, num_frames=8, read_size=32)
        session = push(StreamSession(model, processor, "ring(cap=8)"), chunk=3)
        whole = Session(model, processor, "").ask(CLIP, "what happens", 3)
        answer = session.ask("what happens", 3)
        assert (answer.text, answer.tokens, answer.prompt_tokens) == (whole.text, whole.tokens, whole.prompt_tokens)
    with pytest.raises(ValueError, match="two encoders or with streams"):
        StreamSession(build(parts, streams="slow_fast"), processor, "ring(cap=8)")
