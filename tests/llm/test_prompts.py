"""Our preprocessing against transformers' own.

* The text that represents a video: against `replace_video_token` of each processor of transformers, exactly.
* Ids: against those of transformers for that text.
* Pixels: against its Pillow image processors frame by frame, to 2 (Lanczos: 0) of 255 levels before normalization,
  because Pillow and torch round differently; packing and sizes exactly. Its video processors require torchvision: if
  it is installed, all eight are compared bit for bit (SmolVLM's Lanczos to a few levels), and so are the inputs of the
  full processors; otherwise these two tests are skipped.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf

from fewtokens.llm.backends.base import backend_named
from fewtokens.llm.backends.smolvlm import in_words
from fewtokens.llm.pixels import pack, pair_times, resize, whole_patches
from fewtokens.llm.prompts import Processor, read_preprocess_config, read_template
from fewtokens.video import Video, synthetic
from tests.llm.saved import SPECIALS, make_tokenizer, save, template
from tests.llm.tiny import FAMILIES, tiny

CONFIGS = {
    "llava_onevision": "LlavaOnevision", "llava_next_video": "LlavaNextVideo", "qwen2_vl": "Qwen2VL",
    "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL", "internvl": "InternVL", "smolvlm": "SmolVLM",
    "video_llama_3": "VideoLlama3",
}  # fmt: skip
# As in the folders of published checkpoints, except for SmolVLM's 2048, which is slow.
PUBLISHED: dict[str, dict[str, Any]] = {
    "llava_onevision": {"size": {"height": 384, "width": 384}},
    "llava_next_video": {
        "size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}, "do_center_crop": True,
    },
    "qwen2_vl": {"min_pixels": 3136, "max_pixels": 12845056},
    "qwen2_5_vl": {"min_pixels": 3136, "max_pixels": 12845056},
    "qwen3_vl": {"size": {"shortest_edge": 4096, "longest_edge": 25165824}},
    "internvl": {"size": {"height": 448, "width": 448}},
    "smolvlm": {"size": {"longest_edge": 1024}, "max_image_size": {"longest_edge": 512}},
    "video_llama_3": {"size": {"shortest_edge": 3136, "longest_edge": 3000000}, "use_token_compression": False},
}  # fmt: skip
SIZES = {"landscape": (150, 203), "portrait": (203, 150), "small": (40, 90)}


def config_of(family: str) -> Any:
    """The default config, with the sizes of a published model if they differ."""
    config = getattr(hf, f"{CONFIGS[family]}Config")()
    if family == "llava_next_video":
        config.vision_config.image_size = 336
    if family == "qwen3_vl":
        config.vision_config.patch_size = 16
    if family == "video_llama_3":
        config.vision_config.patch_size = 14
    if family == "internvl":
        config.vision_config.image_size, config.vision_config.patch_size = [448, 448], [14, 14]
    return config


def fake_model(family: str) -> tuple[Any, Any]:
    """A model and a processor with only the attributes that `prepare` reads."""
    config = config_of(family)
    model = SimpleNamespace(config=config, base_model=SimpleNamespace(image_seq_len=64))
    image, video, *_ = SPECIALS[family]
    preprocess_config = backend_named(family).defaults(config) | PUBLISHED[family]
    placeholder = image if backend_named(family).needs_items else video
    return model, SimpleNamespace(
        preprocess_config=preprocess_config, placeholder=placeholder, token=lambda name, default: default
    )


def clip(size: str = "landscape", frames: int = 6) -> Video:
    return synthetic("shapes", frames=frames, size=SIZES[size], fps=2.0)


def reference(family: str) -> Any:
    """The processor of transformers, with only the attributes that `replace_video_token` reads."""
    processor = object.__new__(getattr(hf, f"{CONFIGS[family]}Processor"))
    image, video, *_ = SPECIALS[family]
    processor.video_processor = SimpleNamespace(merge_size=2, temporal_patch_size=2)
    processor.vision_start_token, processor.vision_end_token = "<|vision_start|>", "<|vision_end|>"
    processor.start_image_token, processor.end_image_token, processor.image_seq_length = "<img>", "</img>", 256
    processor.fake_image_token, processor.global_image_token = "<fake_token_around_image>", "<global-img>"
    processor.image_seq_len, processor.num_image_tokens, processor.patch_size = 64, 27 * 27, 14
    processor.image_token, processor.video_token = image, video
    return processor


def metadata(video: Video) -> Any:
    from transformers.video_utils import VideoMetadata

    return VideoMetadata(
        total_num_frames=len(video), fps=video.fps, duration=video.duration, frames_indices=list(range(len(video)))
    )


@pytest.mark.parametrize("frames", [6, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_is_that_of_transformers(family, frames, monkeypatch):
    video = clip(frames=frames)
    model, processor = fake_model(family)
    prepared = backend_named(family).prepare(model, processor, video)
    arguments: dict[str, Any] = dict(prepared.inputs) | {"video_metadata": [metadata(video)]}
    if family == "internvl":
        arguments["pixel_values_videos"] = arguments["pixel_values"][None]
    if family == "video_llama_3":
        cells = int(arguments["video_grid_thw"].prod()) // 4
        arguments["video_compression_mask"] = torch.ones(cells, dtype=torch.bool)
    if family == "smolvlm":
        monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", in_words)
    assert prepared.text == reference(family).replace_video_token(arguments, video_idx=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_are_those_of_the_video_processor(family, size):
    pytest.importorskip("torchvision")
    video = clip(size)
    model, processor = fake_model(family)
    inputs = backend_named(family).prepare(model, processor, video).inputs
    name = "Qwen2VL" if family == "qwen2_5_vl" else CONFIGS[family]
    maker = getattr(hf, f"{name}VideoProcessor", None) or hf.LlavaNextVideoVideoProcessor
    config = {key: processor.preprocess_config[key] for key in ("image_mean", "image_std")} | PUBLISHED[family]
    expected = maker(**config)(
        video.frames, do_sample_frames=False, video_metadata=[metadata(video)], return_tensors="pt"
    )
    expected = dict(expected)
    if family == "internvl":
        expected["pixel_values"] = expected.pop("pixel_values_videos")[0]
    for key, value in inputs.items():
        if key == "second_per_grid_ts":
            assert value.tolist() == [1.0]  # two frames at two a second
        elif family == "smolvlm":
            # Lanczos is that of Pillow here, and that of torch in recent versions of transformers.
            assert (value - expected[key]).abs().max() <= 4 / 255 / 0.5
        else:
            assert torch.equal(value, expected[key]), key


IMAGES = {
    "llava_onevision": "LlavaOnevision", "llava_next_video": "LlavaNext", "internvl": "GotOcr2", "smolvlm": "SmolVLM",
    "video_llama_3": "VideoLlama3",
}  # fmt: skip
NEEDS = {
    "llava_onevision": {"num_image_tokens": 49}, "internvl": {"image_seq_length": 9}, "smolvlm": {"image_seq_len": 9},
    "llava_next_video": {"patch_size": 4, "vision_feature_select_strategy": "default"},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_inputs_are_those_of_the_full_processor(family, tmp_path, monkeypatch):
    pytest.importorskip("torchvision")
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", in_words)
    video = synthetic("static", frames=6, size=(64, 96), fps=2.0)
    ours = Processor(save(family, tmp_path), tiny(family))
    tokenizer = make_tokenizer(family)
    if family == "internvl":
        names = ("context_image_token", "video_token", "start_image_token", "end_image_token")
        for name, token in zip(names, SPECIALS[family], strict=True):
            setattr(tokenizer, name, token)
            setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    config = dict(ours.preprocess_config)
    if "video_grid_thw" in (inputs := ours(tiny(family), video, "what happens")):
        tubelet = 1 if family == "video_llama_3" else 2
        config |= {"patch_size": 4, "merge_size": 2, "temporal_patch_size": tubelet, "use_token_compression": False}
    name = "Qwen2VL" if family == "qwen2_5_vl" else CONFIGS[family]
    theirs = getattr(hf, f"{CONFIGS[family]}Processor")(
        image_processor=getattr(hf, f"{IMAGES.get(family, 'Qwen2VL')}ImageProcessor")(),
        tokenizer=tokenizer,
        video_processor=getattr(hf, f"{name}VideoProcessor")(**config),
        chat_template=template(family),
        **NEEDS.get(family, {}),
    )
    content = [{"type": "video"}, {"type": "text", "text": "what happens"}]
    text = theirs.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    expected = theirs(
        text=[text],
        videos=[video.frames],
        video_metadata=[metadata(video)],
        do_sample_frames=False,
        add_special_tokens=not text.startswith("<s>"),
        return_tensors="pt",
    )
    assert set(expected) - set(inputs) <= {"pixel_attention_mask", "video_compression_mask"}  # both are all True
    for key, value in inputs.items():
        actual = torch.as_tensor(expected[key])
        if family == "smolvlm" and key == "pixel_values":
            assert (value - actual).abs().max() <= 2 / 255 / 0.5
        else:
            assert torch.equal(value, actual.to(value.dtype)), key


def levels(ours: torch.Tensor, theirs: Any, std: Any) -> float:
    """The largest difference in levels of 255."""
    theirs = torch.as_tensor(theirs)
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max()) * 255 * max(std)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_are_those_of_the_pillow_image_processor(family, size):
    video = clip(size, frames=2)
    frame = video.frames[:1]
    model, processor = fake_model(family)
    if family == "qwen3_vl":  # its pixel limits are those of all frames together
        processor.preprocess_config |= {"size": {"shortest_edge": 64 * 64, "longest_edge": 200 * 200}}
    ours = (
        backend_named(family)
        .prepare(model, processor, Video(frame.expand(2, -1, -1, -1), video.times, 1.0, 2.0))
        .inputs
    )
    config: dict[str, Any] = {key: processor.preprocess_config[key] for key in ("image_mean", "image_std")}
    size_config = {
        key: value for key, value in processor.preprocess_config.items() if key in ("size", "min_pixels", "max_pixels")
    }
    image = frame[0].permute(1, 2, 0).numpy()
    std = processor.preprocess_config["image_std"]
    if "video_grid_thw" in ours:
        if family == "qwen3_vl":
            size_config = {"size": {"shortest_edge": 64 * 64 // 2, "longest_edge": 200 * 200 // 2}}
        if family == "video_llama_3":
            size_config = {"size": {"shortest_edge": 3136, "longest_edge": 3000000 // 2}}
            maker = hf.models.video_llama_3.image_processing_pil_video_llama_3.VideoLlama3ImageProcessorPil
        else:
            maker = hf.models.qwen2_vl.image_processing_pil_qwen2_vl.Qwen2VLImageProcessorPil
        patch = model.config.vision_config.patch_size
        expected = maker(patch_size=patch, merge_size=2, **config, **size_config)(image, return_tensors="pt")
        _, h, w = ours["video_grid_thw"][0].tolist()
        assert expected["image_grid_thw"].tolist() == [[1, h, w]]
        assert levels(ours["pixel_values_videos"][: h * w], expected["pixel_values"], std) <= 2.1
        return
    if family == "llava_next_video":
        maker = hf.models.clip.image_processing_pil_clip.CLIPImageProcessorPil
        expected = maker(**config, size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    elif family == "smolvlm":
        maker = hf.models.smolvlm.image_processing_pil_smolvlm.SmolVLMImageProcessorPil
        expected = maker(**config, **PUBLISHED[family], do_image_splitting=False)
    else:
        maker = hf.models.siglip.image_processing_pil_siglip.SiglipImageProcessorPil
        expected = maker(**config, **size_config, resample=3)
    theirs = torch.as_tensor(expected(image, return_tensors="pt")["pixel_values"]).reshape(-1, 3, *frame_size(ours))[0]
    actual = ours.get("pixel_values_videos", ours.get("pixel_values")).reshape(-1, 3, *frame_size(ours))[0]
    assert levels(actual, theirs, std) <= (0.01 if family == "smolvlm" else 2.1)


def frame_size(inputs: dict[str, torch.Tensor]) -> torch.Size:
    (pixels,) = (value for name, value in inputs.items() if name.startswith("pixel_values"))
    return pixels.shape[-2:]


def test_patches_of_a_cell_are_consecutive():
    # Two frames of 8 x 8: patches of 2 x 2, cells of 2 x 2 patches; the value of a pixel is its index.
    frames = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).reshape(2, 3, 8, 8)
    patches, shape = pack(frames, patch=2, merge=2, tubelet=2)
    assert shape == (1, 4, 4) and patches.shape == (16, 3 * 2 * 2 * 2)
    # The second row of patches, third column: cell (0, 1), its third patch; so row 4 + 2.
    expected = [frames[f, c, y, x].item() for c in range(3) for f in range(2) for y in (2, 3) for x in (4, 5)]
    assert patches[6].tolist() == expected
    odd, (steps, _, _) = pack(frames[:1], 2, 2, 2)
    assert steps == 1 and torch.equal(odd[:, :4], odd[:, 4:8])  # the last frame is repeated


def test_sizes_by_hand():
    assert whole_patches(720, 1280, 28, 3136, 12845056) == (728, 1288)
    # 768 cells of 28 x 28 at most: 720p shrinks by sqrt(921600 / 602112) = 1.2372, to 20 and 36 cells.
    assert whole_patches(720, 1280, 28, 100352, 602112) == (20 * 28, 36 * 28)
    assert whole_patches(30, 40, 28, 100352, 602112) == (280, 392)
    with pytest.raises(ValueError, match="too narrow"):
        whole_patches(1, 300, 28, 1, 10**9)
    with pytest.raises(ValueError, match="filter 5"):
        resize(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), (4, 4), 5)
    assert pair_times([0.0, 0.5, 1.0], 2) == [0.25, 1.0]


def test_numbers_in_words():
    expected = {0: "zero", 13: "thirteen", 20: "twenty", 32: "thirty-two", 64: "sixty-four", 100: "one hundred",
             128: "one hundred and twenty-eight", 1000: "one thousand", 1024: "one thousand and twenty-four",
             2500: "two thousand, five hundred"}  # fmt: skip
    assert {number: in_words(number) for number in expected} == expected


@pytest.mark.parametrize("family", ["llava_next_video", "qwen3_vl", "internvl"])
def test_the_ids_are_those_of_transformers(family, tmp_path):
    folder = save(family, tmp_path)
    processor = Processor(folder, tiny(family))
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what happens"}]}]
    video_text = "Frame 1: " + processor.placeholder * 3
    tokenizer = make_tokenizer(family)
    rendered = tokenizer.apply_chat_template(
        messages, chat_template=template(family), tokenize=False, add_generation_prompt=True
    ).replace(processor.markers["video"], video_text)
    actual = processor.ids("what happens", video_text)
    assert actual[0].tolist() == tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert int((actual == tokenizer.convert_tokens_to_ids(processor.placeholder)).sum()) == 3


def test_files_of_configs_and_templates(tmp_path):
    def put(name: str, **config: Any) -> None:
        (tmp_path / name).write_text(json.dumps(config))

    tokenizer = SimpleNamespace(chat_template=None)
    assert read_preprocess_config(tmp_path) == {} and read_template(tmp_path, tokenizer) is None
    put("preprocessor_config.json", size={"height": 1, "width": 1}, crop_size=None)
    assert read_preprocess_config(tmp_path) == {"size": {"height": 1, "width": 1}}
    put("preprocessor_config.json", video_sampling={"video_size": {"longest_edge": 512}})
    assert read_preprocess_config(tmp_path)["size"] == {"longest_edge": 512}
    put("video_preprocessor_config.json", size=2)
    assert read_preprocess_config(tmp_path) == {"size": 2}
    put("processor_config.json", video_processor={"size": 3}, chat_template="c")
    assert read_preprocess_config(tmp_path) == {"size": 3}
    assert read_template(tmp_path, SimpleNamespace(chat_template="d")) == "c"
    put("chat_template.json", chat_template="b")
    assert read_template(tmp_path, tokenizer) == "b"
    (tmp_path / "chat_template.jinja").write_text("a")
    assert read_template(tmp_path, tokenizer) == "a"


def test_templates_without_parts_and_missing_templates(tmp_path):
    folder = save("qwen2_vl", tmp_path, with_template=False)
    processor = Processor(folder, tiny("qwen2_vl"))
    assert processor.notes and processor.render("what?") == "USER: <|video_pad|>\nwhat? ASSISTANT:"
    processor.template = (
        "{% for message in messages %}[{{ message['content'] if message['content'] is string }}]{% endfor %}"
    )
    assert processor.render("what?") == "[<|video_pad|>\nwhat?]"
    processor.template = "{{ nothing.at.all }}"
    with pytest.raises(ValueError, match="chat template fails"):
        processor.render("what?")
    with pytest.raises(ValueError, match="remove it"):
        processor.render("what is <|video_pad|>?")


def test_a_processor_that_does_not_resize_is_refused(tmp_path):
    folder = save("qwen2_vl", tmp_path)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_resize": False}))
    with pytest.raises(ValueError, match="sets do_resize to false"):
        Processor(folder, tiny("qwen2_vl"))


@pytest.mark.parametrize(
    ("times", "expected"),
    [([10 + n / 2 for n in range(20)], 1.0), ([40.0, 40.1, 40.2], 0.2), ([0.0, 4.0], 8.0), ([7.0], 0.2)],
)
def test_the_time_scale_is_that_of_the_frames(times, expected):
    """Part of a one-minute file at 10 frames per second, a chunk, two frames, one frame."""
    frames = torch.zeros(len(times), 3, 4, 4, dtype=torch.uint8)
    video = Video(frames, torch.tensor(times, dtype=torch.float64), duration=60.0, fps=10.0)
    inputs: dict[str, Any] = {}
    backend_named("qwen2_5_vl").extra_inputs(inputs, video, 2, 2)
    assert inputs["second_per_grid_ts"].tolist() == pytest.approx([expected])
