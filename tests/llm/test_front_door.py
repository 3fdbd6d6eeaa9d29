"""Common mistakes raise a one-line ValueError; a model is loaded from a folder in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fewtokens.llm import ComposedVideoLLM, Session, VideoLLM, attach, compress_inputs, load
from fewtokens.llm.chat import encode_turns
from fewtokens.video import Video, read, write
from tests.llm.saved import save
from tests.llm.test_composed import QUESTIONS, build, conversations, parts  # noqa: F401, fixtures
from tests.llm.test_session import CLIP, FIRST, SECOND, loaded
from tests.llm.tiny import FAMILIES


def check_refused(run: Callable[[], Any], match: str) -> None:
    with pytest.raises(ValueError, match=match) as error:
        run()
    assert "\n" not in str(error.value)


def test_arguments_of_a_method_outside_the_spec():
    model, processor = loaded("qwen2_vl")
    inputs = processor(model, CLIP, FIRST)
    message = (
        r"does not accept keep, only layout, positions, items, images, tower; put arguments of a method in the spec"
    )
    check_refused(lambda: compress_inputs(model, inputs, "tome", keep=0.1), f"compress_inputs {message}")
    check_refused(lambda: attach(model, "tome", keep=0.1), f"attach {message}")


def test_attach_without_with():
    model, processor = loaded("qwen2_vl")
    inputs = processor(model, CLIP, FIRST)
    few: Any = attach(model, "tome(keep=0.1)")
    for run in (few, few.generate, few.compress):
        check_refused(
            lambda run=run: run(**inputs), r"nothing is attached yet; write `with attach\(model, \.\.\.\) as few:`"
        )
    with few as attached:
        assert attached.compress(**inputs)["input_ids"].shape[1] < inputs["input_ids"].shape[1]
    with few as attached:  # it can be entered again
        assert attached.generate(**inputs, max_new_tokens=1).shape[0] == 1


def test_a_processor_with_lists_that_do_not_match(parts):  # noqa: F811
    model, processor = loaded("qwen2_vl")
    composed = build(parts)
    for args in (
        (["clip.mp4"], FIRST), ([CLIP, CLIP], FIRST), (CLIP, [FIRST, SECOND]), ([], []), ([CLIP], [FIRST, SECOND]),
        ([CLIP], [3]),
    ):  # fmt: skip
        kinds = " and ".join(type(arg).__name__ for arg in args)
        check_refused(
            lambda args=args: processor(model, *args), rf"takes one video .* and one question, equally .*, got {kinds}"
        )
    check_refused(lambda: processor(model, "missing.mp4", FIRST), "missing.mp4: no such file")
    assert isinstance(composed, ComposedVideoLLM)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_processor_makes_batches(family):
    """Each prompt of a batch continues as it does alone."""
    model, processor = loaded(family)
    equal = family.startswith("llava")
    other = CLIP if equal else Video(CLIP.frames[:4], CLIP.times[:4])
    videos, questions = [CLIP, other], [FIRST, SECOND]
    with attach(model, "evs(keep=0.5)") as few:
        ids = few.generate(**processor(model, videos, questions), max_new_tokens=4, do_sample=False)
        together = ids[:, few.last.inputs["input_ids"].shape[1] :]
        for video, question, expected in zip(videos, questions, together, strict=True):
            ids = few.generate(**processor(model, video, question), max_new_tokens=4, do_sample=False)
            assert ids[0, few.last.inputs["input_ids"].shape[1] :].tolist() == expected.tolist()
    if equal:
        short = Video(CLIP.frames[:4], CLIP.times[:4])
        check_refused(lambda: processor(model, [CLIP, short], questions), "same number of frames in a batch")


def test_inputs_have_the_dtype_of_the_model(tmp_path):
    model, processor = load(save("llava_onevision", tmp_path), device="cpu", dtype="bfloat16")
    inputs = processor(model, CLIP, FIRST)
    assert inputs["pixel_values_videos"].dtype == torch.bfloat16 and inputs["input_ids"].dtype == torch.int64


def test_a_layer_beyond_the_model(parts):  # noqa: F811
    model, processor = loaded("qwen2_vl")
    message = r"fastv\(.*layer=99\): layer 99 is beyond the model's 3 layers; use one of 1 to 2"
    check_refused(lambda: Session(model, processor, "fastv(layer=99)"), message)
    check_refused(lambda: attach(model, "fastv(layer=99)").__enter__(), message)
    check_refused(
        lambda: attach(build(parts), "fastv(layer=99)").__enter__(), "layer 99 is beyond the model's 2 layers"
    )
    for spec in ("fastv(layer=1)", "dycoke_cache(layer=1)"):
        check_refused(
            lambda spec=spec: compress_inputs(model, processor(model, CLIP, FIRST), spec),
            r"acts in the stage 'llm'; it acts inside the language model; use `with attach\(model",
        )


def test_methods_inside_the_vision_tower():
    model, processor = loaded("qwen2_vl")
    answer = Session(model, processor, "tome_in_encoder(r=1)").ask(CLIP, FIRST, 2)
    assert answer.tokens == answer.cells - 2 * 4  # one in each of 2 blocks and 4 steps
    message = "tome_in_encoder acts inside the vision tower, where it cannot be combined with rlt; use one of them"
    check_refused(lambda: Session(model, processor, "rlt | tome_in_encoder(r=1)"), message)
    message = r"vid_tldr\(.*\) needs sharpness .* of each block, .*; use vid_tldr\(by='shift'\)"
    check_refused(lambda: Session(model, processor, "vid_tldr"), message)


def test_a_video_llm_instead_of_its_model():
    model, processor = loaded("qwen2_vl")
    video_llm = VideoLLM(model, processor)
    message = "a model is required, got a VideoLLM; pass its attribute `model`"
    check_refused(lambda: attach(video_llm, "evs(keep=0.5)").__enter__(), message)
    check_refused(lambda: compress_inputs(video_llm, processor(model, CLIP, FIRST), "evs(keep=0.5)"), message)


def test_several_questions_in_one_call():
    model, processor = loaded("qwen2_vl")
    questions: Any = [FIRST, SECOND]
    check_refused(
        lambda: Session(model, processor).ask(CLIP, questions), "question must be one string, got list; call ask once"
    )


def test_tokens_in_each_layer():
    model, processor = loaded("qwen2_vl")
    answer = Session(model, processor, "uniform(keep=8) | fastv(keep=0.5, layer=2)").ask(CLIP, FIRST, 2)
    assert (answer.tokens, answer.layer_tokens) == (8, [8, 8, 4])
    pyramid = Session(model, processor, "uniform(keep=8) | pyramid_drop(keep=(0.5, 0.25), layers=(1, 2))")
    assert pyramid.ask(CLIP, FIRST, 2, memory=True).layer_tokens == [8, 4, 2]
    assert Session(model, processor, "uniform(keep=8)").ask(CLIP, FIRST, 2).layer_tokens == []


def test_from_pretrained(tmp_path):
    folder = save("qwen2_vl", tmp_path / "model")
    model = VideoLLM.from_pretrained(folder, device="cpu")
    answer = model.session("uniform(keep=4)", frames=8).ask(CLIP, FIRST, 3)
    assert (answer.tokens, answer.new_tokens) == (4, 3)
    with model.attach("uniform(keep=4)") as few:
        ids = few.generate(**model.processor(model.model, CLIP, FIRST), max_new_tokens=3, do_sample=False)
    text = model.processor.tokenizer.decode(ids[0, -3:], skip_special_tokens=True)
    assert text.strip() == answer.text.strip()
    check_refused(lambda: VideoLLM.from_pretrained(tmp_path / "nowhere"), "no such folder")
    # The default number of frames is that of the processor.
    long = write(tmp_path / "long.mp4", CLIP.frames.repeat(6, 1, 1, 1), 8)
    assert model.session("", frames=None).ask(long, FIRST, 1).cells == 32 // 2 * answer.cells // 4


@pytest.fixture(scope="module")
def composed(parts, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("composed")
    build(parts, "uniform(keep=5)").eval().save_pretrained(folder, trained={"frames": 4, "size": 32})
    return folder


class TestComposed:
    def test_its_own_methods_by_default(self, composed, conversations):  # noqa: F811
        model = VideoLLM.from_pretrained(composed, device="cpu")
        clip = read(conversations / "0.mp4", frames=4, size=32)
        session = model.session()
        answer = session.ask(conversations / "0.mp4", QUESTIONS[0], 4)
        assert (answer.tokens, answer.cells) == (5, 16)
        assert model.session("").ask(clip, QUESTIONS[0], 4).tokens == 16
        assert model.session("rlt(keep=0.5)").ask(clip, QUESTIONS[0], 4).tokens == 8  # which reads pixels
        inputs = model.processor(model.model, clip, QUESTIONS[0])
        ids = model.model.generate(**inputs, max_new_tokens=4, do_sample=False)
        assert model.model.tokenizer.decode(ids[0, -4:], skip_special_tokens=True).strip() == answer.text.strip()
        batch = model.processor(model.model, [clip, clip], QUESTIONS[:2])
        both = model.model.generate(**batch, max_new_tokens=4, do_sample=False)
        assert len(both) == 2 and both[0, -4:].tolist() == ids[0, -4:].tolist()
        half = VideoLLM.from_pretrained(composed, device="cpu", dtype="bfloat16")
        assert half.model.dtype == torch.bfloat16 and half.session().ask(clip, QUESTIONS[0], 2).new_tokens == 2

    @pytest.mark.parametrize("spec", ["fastv(keep=0.5, layer=1)", "uniform(keep=8) | fastv(keep=4, layer=1)"])
    def test_methods_inside_its_language_model(self, composed, conversations, spec):  # noqa: F811
        model = VideoLLM.from_pretrained(composed, device="cpu")
        inputs = model.processor(model.model, read(conversations / "0.mp4", frames=4, size=32), QUESTIONS[0])
        options = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
        with model.attach(spec) as few:
            out = few.generate(**inputs, **options)
            layout, length = few.last.layout, few.last.inputs["input_ids"].shape[1]
        stored = [layer.keys.shape[2] for layer in out.past_key_values.layers]
        n = len(layout.videos[0].columns)
        assert stored == [length + 2, length + 2 - n + (4 if "|" in spec else n // 2)]
        with model.attach(spec.split("|")[0] if "|" in spec else "") as few:
            baseline = few.generate(**inputs, **options)
        assert not torch.equal(baseline.logits[0], out.logits[0])
        with model.attach("fastv(keep=1.0, layer=1)") as few:
            full = few.generate(**inputs, **options)
        with model.attach("") as few:
            assert torch.equal(torch.stack(few.generate(**inputs, **options).logits), torch.stack(full.logits))

    def test_a_later_turn(self, composed, conversations):  # noqa: F811
        """Positions continue after the video's last cell; compared with one pass over the full conversation."""
        model = VideoLLM.from_pretrained(composed, device="cpu")
        net, video = model.model, read(conversations / "0.mp4", frames=4, size=32)
        inputs = model.processor(net, video, QUESTIONS[0])
        options = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, "output_logits": True,
                   "eos_token_id": None}  # fmt: skip
        with model.attach("uniform(keep=3)") as few:
            first = few.generate(**inputs, **options)
            short = few.last.inputs
            ids = torch.cat([first.sequences, torch.tensor([[5, 6, 7]])], 1)
            second = few.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=first.past_key_values, **options
            )
        length = second.sequences.shape[1] - 1
        at = short["position_ids"]
        more = at[:, -1:] + 1 + torch.arange(length - at.shape[1])
        full = net(
            input_ids=second.sequences[:, :-1], attention_mask=torch.ones(1, length, dtype=torch.int64),
            position_ids=torch.cat([at, more], 1), mm_encoder_outputs=short["mm_encoder_outputs"],
        ).logits[:, ids.shape[1] - 1 :]  # fmt: skip
        torch.testing.assert_close(torch.stack(second.logits, 1), full, rtol=1e-4, atol=1e-4)

    def test_chat_messages(self, composed, conversations):  # noqa: F811
        model = VideoLLM.from_pretrained(composed, device="cpu")
        net, path = model.model, str(conversations / "0.mp4")
        first = {"role": "user", "content": [{"type": "video", "path": path}, {"type": "text", "text": QUESTIONS[0]}]}
        answer = {"role": "assistant", "content": "a digit"}
        second = {"role": "user", "content": QUESTIONS[1]}
        inputs, one = model.processor(net, [first, answer, second]), model.processor(net, [first])
        single = model.processor(net, path, QUESTIONS[0])
        assert all(torch.equal(one[name], value) for name, value in single.items())
        ids, _ = encode_turns(net.tokenizer, [(QUESTIONS[0], "a digit"), (QUESTIONS[1], None)], 16)
        assert torch.equal(inputs["input_ids"][0], ids)
        for messages in (
            [{"role": "system", "content": "a digit"}, first],
            [second],
            [first, answer, first],
            [{"role": "user", "content": [{"type": "image", "path": "a.png"}]}],
        ):
            check_refused(lambda messages=messages: model.processor(net, messages), "takes one video, at the beginning")

    def test_beams_begin_with_the_prompt(self, composed, conversations):  # noqa: F811
        model = VideoLLM.from_pretrained(composed, device="cpu")
        inputs = model.processor(model.model, read(conversations / "0.mp4", frames=4, size=32), QUESTIONS[0])
        with model.attach("uniform(keep=3)") as few:
            ids = few.generate(**inputs, num_beams=3, num_return_sequences=2, max_new_tokens=2, do_sample=False)
            prompt = few.last.inputs["input_ids"]
        assert torch.equal(ids[:, : prompt.shape[1]], prompt.expand(2, -1))
