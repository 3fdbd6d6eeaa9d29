"""Chat messages: several images and videos, turns and batches, against transformers and against single prompts."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from fewtokens.llm import Session, attach, compress, load
from fewtokens.video import Video, synthetic, write
from tests.llm.saved import SPECIALS, make_tokenizer, save, template
from tests.llm.test_front_door import check_refused
from tests.llm.test_images import llava_next
from tests.llm.test_prompts import reference
from tests.llm.tiny import FAMILIES, IMAGE, VIDEO

CLIP = synthetic("static", frames=6, size=(48, 72), fps=2.0)
OTHER = synthetic("shapes", frames=6, size=(48, 72), fps=2.0)
QUESTION = "what happens"
FEW = "kmeans(keep=4)"
_QWEN = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
# What the image processor of a tiny model needs.
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2_vl": _QWEN, "qwen2_5_vl": _QWEN, "qwen3_vl": _QWEN, "video_llama_3": {"patch_size": 4}, "smolvlm": {},
    "internvl": {"size": {"height": 24, "width": 24}, "max_patches": 4},
    "llava_onevision": {
        "size": {"height": 28, "width": 28}, "image_grid_pinpoints": [[28, 28], [28, 56], [56, 28]],
    },
    "llava_next_video": {
        "size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}, "do_center_crop": True,
        "image_grid_pinpoints": [[24, 24], [24, 48], [48, 24]],
    },
}  # fmt: skip


def picture(width: int = 72, height: int = 48, seed: int = 0) -> Image.Image:
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.numpy())


def save_with_images(family: str, folder: Path) -> Path:
    """As `save`, with the values of the image processor."""
    save(family, folder)
    path = folder / "preprocessor_config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(config | CONFIGS[family]))
    return folder


@cache
def loaded(family: str) -> tuple[Any, Any]:
    return load(save_with_images(family, Path(mkdtemp()) / family), device="cpu")


def user(*parts: Any) -> dict[str, Any]:
    """A message of texts, videos and images."""
    kinds = {str: "text", Video: "video", Image.Image: "image"}
    return {"role": "user", "content": [{"type": kinds[type(part)], kinds[type(part)]: part} for part in parts]}


def text_of(processor: Any, inputs: Any, row: int = 0) -> str:
    ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
    return " ".join(processor.tokenizer.convert_ids_to_tokens(ids))


def equal(first: Any, second: Any) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_question_is_a_conversation_of_one_message(family):
    model, processor = loaded(family)
    assert equal(processor(model, CLIP, QUESTION), processor(model, [user(CLIP, QUESTION)]))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_of_images_is_that_of_transformers(family):
    model, processor = loaded(family)
    theirs = reference(family)
    theirs.image_processor, theirs.patch_size = processor.image_processor, 4
    theirs.num_image_tokens, theirs.image_seq_length = 49, 9
    theirs.image_seq_len = getattr(model.base_model, "image_seq_len", None)
    theirs.vision_aspect_ratio = "anyres_max_9"
    theirs.num_additional_image_tokens = 1 if family == "llava_next_video" else 0
    theirs.vision_feature_select_strategy = "default" if family == "llava_next_video" else "full"
    images = [picture(72, 48), picture(40, 60, seed=1)]
    for chosen in ([images[0]], images):
        options: dict[str, Any] = {"smolvlm": {"return_row_col_info": True}, "internvl": {"crop_to_patches": True}}
        nested = [chosen] if family in ("llava_onevision", "smolvlm") else chosen
        inputs = processor.image_processor(nested, return_tensors="pt", **options.get(family, {}))
        expected = [theirs.replace_image_token(inputs, image_idx=index) for index in range(len(chosen))]
        own = [Video(torch.from_numpy(np.array(each)).permute(2, 0, 1)[None], torch.zeros(1)) for each in chosen]
        prepared = processor.prepare_images(model, own)
        assert [each.text for each in prepared] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_several_images_and_videos(family):
    """The stock model takes the prompt, which counts the placeholders; each part is that of a prompt of its own."""
    model, processor = loaded(family)
    messages = [user("how many", picture(), CLIP, "people are", picture(40, 60, seed=1), OTHER, QUESTION)]
    inputs = processor(model, messages)
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).logits).all()
    with attach(model, FEW, images="kmeans(keep=2)", items=inputs.visual_items) as few:
        ids = few.generate(**inputs, max_new_tokens=2, do_sample=False)
    videos = [tokens for tokens in few.last.tokens if tokens.grid.T > 1]
    assert len(videos) == 2 and all(tokens.N == 4 for tokens in videos)
    assert all(tokens.N <= 2 for tokens in few.last.tokens if tokens.grid.T == 1)
    assert ids.shape[1] < inputs["input_ids"].shape[1]
    assert [tokens.N for tokens in compress(model, inputs, FEW, images="kmeans(keep=2)").tokens] == [
        tokens.N for tokens in few.last.tokens
    ]
    for clip in (CLIP, OTHER):
        alone = compress(model, processor(model, clip, QUESTION), FEW).tokens[0]
        assert any(torch.equal(alone.assignment, tokens.assignment) for tokens in videos)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision", "smolvlm"])
def test_turns_and_system_messages(family):
    model, processor = loaded(family)
    messages = [
        {"role": "system", "content": "people are there"},
        user(CLIP, QUESTION),
        {"role": "assistant", "content": [{"type": "text", "text": "many people"}]},
        user(picture(), "how many "),
    ]
    inputs = processor(model, messages)
    text = text_of(processor, inputs)
    spoken = ("people are there", "what happens", "many people", "how many")
    starts = [text.index(part) for part in spoken]
    assert starts == sorted(starts)
    video = starts[1] < text.index(processor.placeholder) or text.index(processor.placeholder) < starts[1]
    assert video and text.rindex(processor.markers["image"]) < starts[3]
    # A conversation that ends with an answer has no beginning of another one.
    ended = text_of(processor, processor(model, messages[:3]))
    assert ended.endswith("many people") or "many people" in ended.split("assistant")[-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_conversations_equals_single_ones(family):
    model, processor = loaded(family)
    batch = [[user(picture(), CLIP, QUESTION)], [user(OTHER, "how many people")], [user(picture(60, 40), "how many")]]
    inputs = processor(model, batch)
    with attach(model, FEW, images="kmeans(keep=2)", items=inputs.visual_items) as few:
        together = few(**inputs).logits.detach()
        for row, messages in enumerate(batch):
            alone = processor(model, messages)
            few.options["items"] = alone.visual_items
            single = few(**alone).logits.detach()[0]
            few.options["items"] = inputs.visual_items
            torch.testing.assert_close(together[row, -3:], single[-3:], rtol=1e-4, atol=1e-4)


def test_paths_and_arrays(tmp_path):
    model, processor = loaded("qwen2_5_vl")
    frames = CLIP.frames.permute(0, 2, 3, 1).numpy()
    picture().save(tmp_path / "a.png")
    clip = write(tmp_path / "clip.mp4", CLIP.frames, 2)
    for kind, values in {
        "image": [picture(), tmp_path / "a.png", str(tmp_path / "a.png"), np.array(picture())],
        "video": [frames, CLIP.frames, list(frames), [Image.fromarray(frame) for frame in frames]],
    }.items():
        made = [
            processor(
                model, [{"role": "user", "content": [{"type": kind, kind: value}, {"type": "text", "text": "how"}]}]
            )
            for value in values
        ]
        assert all(equal(each, made[0]) for each in made)
    by_path = [{"role": "user", "content": [{"type": "video", "path": str(clip)}, {"type": "text", "text": QUESTION}]}]
    assert equal(processor(model, by_path), processor(model, str(clip), QUESTION))
    assert (
        processor(model, by_path)["video_grid_thw"].tolist()
        == processor(model, clip, QUESTION)["video_grid_thw"].tolist()
    )


def test_errors_are_one_line(tmp_path):
    model, processor = loaded("qwen2_5_vl")
    frames = [picture(), picture(seed=1)]
    frames[0].save(tmp_path / "pages.tiff", save_all=True, append_images=frames[1:])

    def content(**part: Any) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [part]}]

    for messages, match in (
        ([], "messages must be a list of messages, got list"),
        ("what", "messages must be a list of messages, got str"),
        ([[]], "has no messages"),
        ([{"role": "user"}], "not a message: dict"),
        ([{"role": "tool", "content": "x"}], "role of a message must be one of system, user, assistant, got 'tool'"),
        ([{"role": "user", "content": 3}], "a string or a list of parts, got int"),
        (content(type="audio", audio="a.wav"), "must have the type text, image or video, got 'audio'"),
        (content(type="text"), "must have a string 'text'"),
        (content(type="video"), "has neither 'video' nor 'path'"),
        (content(type="image", url="https://a.b/c.png"), "addresses are not read; download the image"),
        (content(type="image", path=str(tmp_path / "none.png")), "none.png: no such file"),
        (content(type="image", path=str(tmp_path / "pages.tiff")), "has 2 images; pass each as a separate image"),
        ([user(CLIP, "what <|image_pad|>")], r"contains <\|image_pad\|>"),
    ):
        check_refused(lambda messages=messages: processor(model, messages), match)


def test_a_processor_of_transformers():
    """That of LLaVA-NeXT needs no torchvision; those of families with videos do."""
    model = llava_next()
    tokenizer = make_tokenizer("llava_next_video")
    image_processor = hf.models.llava_next.image_processing_pil_llava_next.LlavaNextImageProcessorPil(
        size={"shortest_edge": 16},
        crop_size={"height": 16, "width": 16},
        image_grid_pinpoints=model.config.image_grid_pinpoints,
    )
    processor = hf.LlavaNextProcessor(
        image_processor, tokenizer, patch_size=4, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=template("llava_next_video"),
    )  # fmt: skip
    messages = [
        {"role": "user", "content": [{"type": "image", "image": picture(64, 64)}, {"type": "text", "text": QUESTION}]}
    ]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert int((inputs["input_ids"] == IMAGE).sum()) == 88
    with torch.no_grad():
        stock = model(**inputs).logits
        with attach(model, "tome(keep=1.0)", images=True) as few:
            assert torch.equal(few(**inputs).logits, stock)
        with attach(model, "kmeans(keep=0.25)", images=True) as few:
            few(**inputs)
        short = compress(model, inputs, "kmeans(keep=0.25)", images=True)
    assert [tokens.N for tokens in few.last.tokens] == [tokens.N for tokens in short.tokens] == [4, 16]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_session_asks_about_an_image(family, tmp_path):
    model, processor = loaded(family)
    picture().save(tmp_path / "a.png")
    path = tmp_path / "a.png"
    answer = Session(model, processor, "kmeans(keep=0.25)").ask(path, QUESTION, 4)
    inputs = processor(model, [user(picture(), QUESTION)])
    compressed = compress(model, inputs, "kmeans(keep=0.25)", images=True)
    with torch.no_grad():
        out = model.generate(**compressed.inputs, max_new_tokens=4, do_sample=False)
    length = compressed.inputs["input_ids"].shape[1]
    assert answer.text == processor.tokenizer.decode(out[0, length:], skip_special_tokens=True)
    assert answer.prompt_tokens == length < inputs["input_ids"].shape[1]
    assert answer.tokens == sum(tokens.N for tokens in compressed.tokens) < answer.cells
    session = Session(model, processor, "evs(keep=0.5)")
    with torch.no_grad():
        stock = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    full = session.unreduced().ask(path, QUESTION, 4)
    assert full.text == processor.tokenizer.decode(stock[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    # A second question, and a session that shares the features.
    assert session.unreduced().ask(path, QUESTION, 4).text == full.text
    check_refused(lambda: session.ask(path, QUESTION, 4), "evs compares frames, so it has no effect on images")


def test_specials_of_the_tests_are_those_of_the_models():
    model, processor = loaded("qwen2_5_vl")
    image, video, *_ = SPECIALS["qwen2_5_vl"]
    assert processor.markers == {"image": image, "video": video}
    ids = processor(model, [user(picture(), CLIP, QUESTION)])
    assert ids["mm_token_type_ids"].unique().tolist() == [0, 1, 2]
    assert torch.equal(ids["mm_token_type_ids"] == 2, ids["input_ids"] == VIDEO)
