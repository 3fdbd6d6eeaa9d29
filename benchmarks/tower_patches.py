"""Time of the vision tower and of the whole prefill, by the share of patches that are encoded.

    python benchmarks/tower_patches.py               # on the CPU, a few minutes on 2 cores
    python benchmarks/tower_patches.py --layers 32   # the full depth of the tower, for a GPU

Qwen2-VL-2B's tower and language model, cut to 8 and 4 layers, with random weights, which do not affect the cost. 16
frames of 224 x 224 pixels are 2,048 patches, 512 tokens. `visual_words(keep=...)` chooses from the pixels; with
tower="kept" the tower encodes only the patches that it keeps, with tower="full" all of them. Patch embedding and merger
also process only kept patches. Medians of alternating runs.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from common import time_side_by_side, write
from fewtokens.llm import compress
from fewtokens.llm.backends.base import backend_of
from fewtokens.llm.chains import as_pipeline
from fewtokens.llm.tower_run import TowerMethods
from fewtokens.llm.visuals import encode_visuals

SHARES = (0.5, 0.25, 0.1)
TEXT_TOKENS, VIDEO, START, END = 40, 6, 7, 8
FRAMES, SIDE = 16, 16


def model_of(layers: int) -> Any:
    import transformers as hf

    vision = {
        "depth": layers,
        "embed_dim": 1280,
        "hidden_size": 1536,
        "num_heads": 16,
        "mlp_ratio": 4,
        "patch_size": 14,
    }
    text = {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": max(4, layers // 2),
        "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 1000, "max_position_embeddings": 32_768,
        "bos_token_id": 1, "eos_token_id": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }  # fmt: skip
    config = hf.Qwen2VLConfig(
        vision_config=vision, text_config=text, image_token_id=5, video_token_id=VIDEO, vision_start_token_id=START,
        vision_end_token_id=END,
    )  # fmt: skip
    gpu = torch.cuda.is_available()
    torch.manual_seed(0)
    with torch.device("cuda" if gpu else "cpu"):
        model = hf.Qwen2VLForConditionalGeneration(config).to(torch.bfloat16 if gpu else torch.float32)
    return model.eval()


def inputs_of(model: Any) -> dict[str, Any]:
    """One video of noise between random text tokens."""
    generator = torch.Generator().manual_seed(0)
    grid = torch.tensor([[FRAMES // 2, SIDE, SIDE]])
    text = torch.randint(10, 900, (TEXT_TOKENS,), generator=generator).tolist()
    ids = torch.tensor([[*text[:10], START, *[VIDEO] * (int(grid.prod()) // 4), END, *text[10:]]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": 2 * (ids == VIDEO).long(),
        "pixel_values_videos": torch.randn(int(grid.prod()), 3 * 2 * 14 * 14, generator=generator).to(model.dtype),
        "video_grid_thw": grid,
    }
    return {name: value.to(model.device) for name, value in inputs.items()}


@torch.no_grad()
def main(layers: int, repeats: int) -> None:
    model = model_of(layers)
    backend, inputs = backend_of(model), inputs_of(model)
    pipelines = {f"{share:.0%}": as_pipeline(f"visual_words(keep={share})", model) for share in SHARES}

    def encode(pipeline: Any = None) -> Any:
        methods = TowerMethods() if pipeline is None else TowerMethods.of(pipeline)
        return encode_visuals(backend, model, inputs, methods=methods)

    def prefill(spec: Any = "", tower: str = "kept") -> Any:
        return model(**compress(model, inputs, spec, tower=tower).inputs, use_cache=True, logits_to_keep=1)

    towers = {"100%": encode} | {share: lambda p=p: encode(p) for share, p in pipelines.items()}
    wholes = {"100%": prefill} | {share: lambda p=p: prefill(p) for share, p in pipelines.items()}
    without = {share: lambda p=p: prefill(p, "full") for share, p in pipelines.items()}
    encoding, skipped, full = (time_side_by_side(runs, repeats) for runs in (towers, wholes, without))
    rows = [
        {
            "patches encoded": share,
            "tower, ms": time["median"],
            "tower, of 100%": time["median"] / encoding["100%"]["median"],
            "prefill, ms": skipped[share]["median"],
            "prefill, of 100%": skipped[share]["median"] / skipped["100%"]["median"],
            "prefill, tower='full', ms": full[share]["median"] if share in full else None,
        }
        for share, time in encoding.items()
    ]
    write(
        "tower_patches_gpu" if torch.cuda.is_available() else "tower_patches",
        "Time of the vision tower and of the prefill, by the share of patches encoded",
        f"python benchmarks/tower_patches.py --layers {layers}",
        rows,
        f"Qwen2-VL-2B's shape with {layers} layers in the tower and {model.config.text_config.num_hidden_layers} in "
        f"the language model, random weights, {FRAMES} frames of {14 * SIDE} x {14 * SIDE} pixels; medians of "
        f"{repeats} alternating runs. The tower includes the decision from the pixels, the prefill also the tower.",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8, help="layers of the tower; 32 in the released model")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    main(arguments.layers, arguments.repeats)
