"""Tiny random checkpoints with processors, as vLLM and transformers load them.

python -m tests.serve.engine.checkpoints qwen2_5_vl FOLDER
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>", "<image>", "<video>", "<img>", "</img>", "<IMG_CONTEXT>",
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


def tokenizer(names: dict[str, str] | None = None) -> Any:
    """One token per byte, and the special tokens; `names` are those that a processor looks up."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>", extra_special_tokens=names or {}
    )


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


def qwen3_vl() -> tuple[Any, Any]:
    import transformers as hf

    vision = {"depth": 3, "hidden_size": 64, "intermediate_size": 96, "num_heads": 2, "out_hidden_size": 128,
              "patch_size": 16, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16}  # fmt: skip
    text = {**TEXT, "head_dim": 32, "num_hidden_layers": 3, "rope_parameters": {**MROPE, "mrope_interleaved": True}}
    config = hf.Qwen3VLConfig(vision_config=vision, text_config=text, tie_word_embeddings=False, **MEDIA)
    size = {"shortest_edge": 32 * 32, "longest_edge": 256 * 32 * 32}
    # One normalization for both, as in published checkpoints: vLLM applies that of images to videos too.
    merged = {"size": size, "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2, "image_mean": [0.5] * 3,
              "image_std": [0.5] * 3}  # fmt: skip
    processor = hf.Qwen3VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(**merged),
        tokenizer=tokenizer(),
        video_processor=hf.Qwen3VLVideoProcessor(**merged),
        chat_template="",
    )
    return hf.Qwen3VLForConditionalGeneration(config), processor


def llava_onevision() -> tuple[Any, Any]:
    import transformers as hf

    vision = hf.SiglipVisionConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
                                   image_size=84, patch_size=14, vision_use_head=False)  # fmt: skip
    config = hf.LlavaOnevisionConfig(
        vision_config=vision, text_config=hf.Qwen2Config(**TEXT), image_grid_pinpoints=[[84, 84], [84, 168]],
        vision_feature_layer=-1, vision_feature_select_strategy="full", vision_aspect_ratio="anyres_max_9",
        image_token_index=IDS["<image>"], video_token_index=IDS["<video>"], tie_word_embeddings=False,
    )  # fmt: skip
    size = {"height": 84, "width": 84}
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[84, 84], [84, 168]]),
        tokenizer=tokenizer(),
        video_processor=hf.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=36,
        vision_feature_select_strategy="full",
        chat_template="",
    )
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


def llava_next_video() -> tuple[Any, Any]:
    import transformers as hf

    # The resampler of vLLM divides the size of a frame by the square of that of a patch, which must not give zero.
    vision = hf.CLIPVisionConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2,
                                 image_size=24, patch_size=4)  # fmt: skip
    config = hf.LlavaNextVideoConfig(
        vision_config=vision, text_config=hf.LlamaConfig(**TEXT), image_grid_pinpoints=[[24, 24]],
        image_token_index=IDS["<image>"], video_token_index=IDS["<video>"], tie_word_embeddings=False,
    )  # fmt: skip
    size = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    processor = hf.LlavaNextVideoProcessor(
        image_processor=hf.LlavaNextImageProcessor(image_grid_pinpoints=[[24, 24]], **size),
        tokenizer=tokenizer(),
        video_processor=hf.LlavaNextVideoVideoProcessor(**size),
        patch_size=4,
        vision_feature_select_strategy="default",
        chat_template="",
    )
    return hf.LlavaNextVideoForConditionalGeneration(config), processor


def internvl() -> tuple[Any, Any]:
    import transformers as hf

    vision = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": 84, "patch_size": 14, "attention_bias": True}  # fmt: skip
    config = hf.InternVLConfig(
        vision_config=vision, text_config={**TEXT, "model_type": "qwen2"}, image_token_id=IDS["<IMG_CONTEXT>"],
        image_seq_length=9, tie_word_embeddings=False,
    )  # fmt: skip
    size = {"height": 84, "width": 84}
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
             "video_token": "<video>"}  # fmt: skip
    processor = hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessor(size=size, max_patches=1),
        tokenizer=tokenizer(names),
        video_processor=hf.InternVLVideoProcessor(size=size),
        image_seq_length=9,
        chat_template="",
    )
    return hf.InternVLForConditionalGeneration(config), processor


FAMILIES = {
    "internvl": internvl,
    "internvl_chat": internvl,
    "llava_next_video": llava_next_video,
    "llava_onevision": llava_onevision,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
}
# The folder in that of a checkpoint with the same weights as published for `InternVLChatModel`.
PUBLISHED = "published"


def restore_names(path: Path) -> None:
    """Renames the weights of the encoder to their names in published checkpoints, the only ones that vLLM knows."""
    from safetensors.torch import load_file, save_file

    tower = "vision_tower."
    state = {
        name.replace(tower, f"{tower}vision_model.") if f"{tower}vision_model" not in name else name: value
        for name, value in load_file(path).items()
    }
    save_file(state, path, metadata={"format": "pt"})


def save_published_internvl(model: Any, folder: Path) -> None:
    """Saves InternVL as `InternVLChatModel`, the layout of its publishers, which transformers does not know."""
    from safetensors.torch import save_file

    renamed = {
        "model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head.",
        "model.multi_modal_projector.layer_norm.": "mlp1.0.", "model.multi_modal_projector.linear_1.": "mlp1.1.",
        "model.multi_modal_projector.linear_2.": "mlp1.3.", "model.vision_tower.": "vision_model.",
        ".cls_token": ".class_embedding", ".position_embeddings": ".position_embedding",
        ".patch_embeddings.projection.": ".patch_embedding.", ".encoder.layer.": ".encoder.layers.",
        ".lambda_": ".ls", ".attention.projection_layer.": ".attn.proj.", ".layernorm_before.": ".norm1.",
        ".layernorm_after.": ".norm2.",
    }  # fmt: skip
    state = {}
    for name, value in model.state_dict().items():
        if ".vision_tower." in name and ".attention.q_proj." in name:
            parts = [model.state_dict()[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            name, value = name.replace(".attention.q_proj.", ".attn.qkv."), torch.cat(parts)
        elif ".vision_tower." in name and ".attention." in name and ".projection_layer." not in name:
            continue
        for ours, theirs in renamed.items():
            name = name.replace(ours, theirs)
        state[name] = value.contiguous()
    folder.mkdir()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    vision, text = model.config.vision_config, model.config.text_config
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["InternVLChatModel"], "model_type": "internvl_chat", "torch_dtype": "float32",
        "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"},
        "downsample_ratio": 0.5, "ps_version": "v2", "select_layer": -1, "force_image_size": vision.image_size[0],
        "dynamic_image_size": True, "min_dynamic_patch": 1, "max_dynamic_patch": 1, "use_thumbnail": True,
        "tie_word_embeddings": False,
        "llm_config": {**text.to_dict(), "architectures": ["Qwen2ForCausalLM"]},
        "vision_config": {
            "model_type": "intern_vit_6b", "hidden_size": vision.hidden_size, "image_size": vision.image_size[0],
            "patch_size": vision.patch_size[0], "intermediate_size": vision.intermediate_size, "qkv_bias": True,
            "num_hidden_layers": vision.num_hidden_layers, "num_attention_heads": vision.num_attention_heads,
            "qk_normalization": False, "norm_type": "layer_norm", "layer_norm_eps": vision.layer_norm_eps,
            "hidden_act": vision.hidden_act, "initializer_factor": 0.1,
        },
    }))  # fmt: skip
    shutil.copy(Path(__file__).parent / "configuration_internvl_chat.py", folder)
    tokenizer().save_pretrained(folder)


def save(family: str, folder: Path) -> None:
    torch.manual_seed(0)
    model, processor = FAMILIES[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # larger than the default, so that the logits depend on the video
                parameter.normal_(std=0.1)
    model.eval().save_pretrained(folder)
    if family.startswith("llava"):
        restore_names(folder / "model.safetensors")
    if family == "internvl_chat":
        save_published_internvl(model, folder / PUBLISHED)
    processor.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    save(sys.argv[1], Path(sys.argv[2]))
