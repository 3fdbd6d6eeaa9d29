"""Tiny random checkpoints with processors, as vLLM and transformers load them.

python -m tests.serve.engine.checkpoints qwen2_5_vl FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
    "<image>", "<video>",
)  # fmt: skip
IDS = {name: 256 + index for index, name in enumerate(SPECIALS)}
# vLLM's attention on a CPU needs heads of at least 32 channels.
TEXT: dict[str, Any] = {
    "vocab_size": 256 + len(SPECIALS), "hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096, "bos_token_id": None,
    "eos_token_id": IDS["<|endoftext|>"], "pad_token_id": IDS["<|endoftext|>"], "tie_word_embeddings": False,
}  # fmt: skip
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
MEDIA = {"image_token_id": IDS["<|image_pad|>"], "video_token_id": IDS["<|video_pad|>"],
         "vision_start_token_id": IDS["<|vision_start|>"], "vision_end_token_id": IDS["<|vision_end|>"]}  # fmt: skip


def tokenizer() -> Any:
    """One token per byte, and the special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def qwen2_5_vl() -> tuple[Any, Any]:
    import transformers as hf

    vision = {"depth": 2, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "out_hidden_size": 128,
              "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1], "tokens_per_second": 2}  # fmt: skip
    config = hf.Qwen2_5_VLConfig(
        vision_config=vision, text_config={**TEXT, "rope_parameters": MROPE}, tie_word_embeddings=False, **MEDIA
    )
    size = {"shortest_edge": 28 * 28, "longest_edge": 64 * 28 * 28}
    processor = hf.Qwen2_5_VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer(),
        video_processor=hf.Qwen2VLVideoProcessor(size=size),
        chat_template="",
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


FAMILIES = {"qwen2_5_vl": qwen2_5_vl}


def save(family: str, folder: Path) -> None:
    torch.manual_seed(0)
    model, processor = FAMILIES[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # larger than the default, so that the logits depend on the video
                parameter.normal_(std=0.1)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    save(sys.argv[1], Path(sys.argv[2]))
