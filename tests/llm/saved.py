"""The models of `tiny`, saved as transformers saves them, with tokenizer, chat template and preprocessing config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.llm.tiny import END, IMAGE, PAD, START, VIDEO, tiny

UNKNOWN, BEGIN, STOP = 2, 1, 199
WORDS = ("what", "happens", "how", "many", "people", "are", "there", "user", "assistant", "Frame")
_QWEN = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
# The names of the four special tokens of the tiny configs: image, video, start, end.
SPECIALS = {
    "llava_onevision": ("<image>", "<video>", "<a>", "<b>"),
    "llava_next_video": ("<image>", "<video>", "<a>", "<b>"),
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "internvl": ("<IMG_CONTEXT>", "<video>", "<img>", "</img>"),
    "smolvlm": ("<image>", "<row>", "<fake_token_around_image>", "<global-img>"),
    "video_llama_3": _QWEN,
}
_SPAN = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "video_llama_3"}
_FRAMES = {"shortest_edge": 256, "longest_edge": 600}
# preprocessor_config.json; other families use the config of the model.
PREPROCESS_CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"size": _FRAMES},
    "qwen2_5_vl": {"min_pixels": 256, "max_pixels": 600},
    "qwen3_vl": {"size": {"shortest_edge": 2048, "longest_edge": 4800}},
    "video_llama_3": {"size": {"shortest_edge": 256, "longest_edge": 4800}},
    "smolvlm": {"size": {"longest_edge": 48}, "max_image_size": {"longest_edge": 24}},
}


def template(family: str) -> str:
    image, video, start, end = SPECIALS[family]
    video = "<video>" if family == "internvl" else start + video + end if family in _SPAN else video
    image = start + image + end if family in _SPAN else image
    return (
        "{% for message in messages %}<s>{{ message['role'] }}\n{% for part in message['content'] %}"
        "{% if part['type'] == 'video' %}"
        + video
        + "{% elif part['type'] == 'image' %}"
        + image
        + "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
        "{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant\n{% endif %}"
    )


def make_tokenizer(family: str) -> Any:
    """A tokenizer of 200 words; those that no sentence of the tests contains are called w23 and so on."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = {PAD: "<pad>", BEGIN: "<s>", UNKNOWN: "<unk>", STOP: "</s>"}
    names |= dict(zip((IMAGE, VIDEO, START, END), SPECIALS[family], strict=True))
    special = list(names.values())
    free = [number for number in range(200) if number not in names]
    names |= {number: WORDS[at] if at < len(WORDS) else f"w{number}" for at, number in enumerate(free)}
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in names.items()}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=special[4:],
    )  # fmt: skip


def save(family: str, folder: Path, *, with_template: bool = True) -> Path:
    """Saves model, tokenizer and preprocessing config in a folder."""
    tiny(family).save_pretrained(folder)
    make_tokenizer(family).save_pretrained(folder)
    if with_template:
        (folder / "chat_template.jinja").write_text(template(family))
    if family in PREPROCESS_CONFIGS:
        (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESS_CONFIGS[family]))
    return folder
