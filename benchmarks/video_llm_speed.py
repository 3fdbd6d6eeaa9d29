"""Time to first token and memory of a video language model, by the number of visual tokens kept.

    python benchmarks/video_llm_speed.py               # a small random model on the CPU, 2 minutes on 2 cores
    python benchmarks/video_llm_speed.py --gpu         # the config of Qwen2.5-VL-3B, bf16

Measures where the time goes (encode, reduce, splice, prefill, each further token) at 100, 25, 10, 1 and 0.14 % of the
tokens, with `token_dynamics` (untrained: k-means centroids) and with `uniform`, which costs nothing; medians of several
repeats. Two alternatives are compared: masking dropped tokens instead of removing them, and reducing the videos of a
batch sequentially. Weights are random, which does not affect the cost.

Small model: SigLIP with 384 channels and 6 layers at 224 px (8 x 8 tokens per frame after pooling), Qwen2 with 512
channels and 8 layers. Expected on 2 cores with 32 frames (2,048 tokens): encoding 1.4 s; prefill 0.80 s with all tokens
and 0.18, 0.08, 0.03, 0.02 s with 25, 10, 1, 0.14 % of them; token_dynamics adds 0.18 to 0.01 s; masking is slower than
keeping all tokens. For a model of the size of LLaVA-OneVision-0.5B see onevision_cost.py.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from common import write
from fewtokens.core.batch import collate
from fewtokens.core.tokens import Tokens
from fewtokens.llm.backends.base import backend_of
from fewtokens.llm.chains import as_pipeline
from fewtokens.llm.interface import cache_of
from fewtokens.llm.prompt_editor import edit_prompts
from fewtokens.llm.visuals import encode_visuals, reduce_visuals
from fewtokens.profiling.memory import peak_memory

FRACTIONS = (1.0, 0.25, 0.1, 0.01, 0.0014)
TEXT_TOKENS, NEW_TOKENS = 40, 16
IMAGE, VIDEO, START, END = 5, 6, 7, 8


def small() -> Any:
    """A model with the architecture of LLaVA-OneVision, small enough for a CPU."""
    return llava_onevision(
        {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6,
         "image_size": 224, "patch_size": 14},
        {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8,
         "num_key_value_heads": 2, "vocab_size": 1000},
        torch.float32,
    )  # fmt: skip


def llava_onevision(
    vision: dict[str, int], text: dict[str, int], dtype: torch.dtype, *, tie_word_embeddings: bool = False
) -> Any:
    """A random model of this family with these sizes."""
    import transformers as hf

    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**vision, vision_use_head=False),
        text_config=hf.Qwen2Config(
            **text, max_position_embeddings=131_072, tie_word_embeddings=tie_word_embeddings
        ),
        vision_feature_layer=-1, image_token_id=IMAGE, video_token_id=VIDEO, tie_word_embeddings=tie_word_embeddings,
    )  # fmt: skip
    return _random_model(hf.LlavaOnevisionForConditionalGeneration, config, dtype)


def qwen25_vl_3b() -> Any:
    import transformers as hf

    vision = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 2048, "num_heads": 16,
        "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2,
    }  # fmt: skip
    text = {
        "hidden_size": 2048, "intermediate_size": 11_008, "num_hidden_layers": 36, "num_attention_heads": 16,
        "num_key_value_heads": 2, "vocab_size": 151_936, "max_position_embeddings": 128_000,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }  # fmt: skip
    config = hf.Qwen2_5_VLConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START,
        vision_end_token_id=END,
    )  # fmt: skip
    return _random_model(hf.Qwen2_5_VLForConditionalGeneration, config, torch.bfloat16)


def _random_model(kind: Any, config: Any, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = kind(config).to(dtype).eval()
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, None
    return model


def prompt(model: Any, frames: int) -> dict[str, Any]:
    """Inputs with one video of noise and random text tokens."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(10, 900, (TEXT_TOKENS,), generator=generator).tolist()
    vision = model.config.vision_config
    if model.config.model_type == "llava_onevision":
        side = -(-(vision.image_size // vision.patch_size) // 2)
        shape = (1, frames, 3, vision.image_size, vision.image_size)
        inputs = {"pixel_values_videos": torch.randn(shape, generator=generator)}
        ids = [*text[:10], *[VIDEO] * (frames * side**2 + 1), *text[10:]]
    else:
        # 336 x 448 pixels: 24 x 32 patches, 12 x 16 tokens per two frames.
        grid = torch.tensor([[frames // 2, 24, 32]])
        inputs = {"pixel_values_videos": torch.randn(int(grid.prod()), 3 * 2 * 14 * 14, generator=generator)}
        inputs |= {"video_grid_thw": grid, "second_per_grid_ts": torch.tensor([1.0])}
        ids = [*text[:10], START, *[VIDEO] * (int(grid.prod()) // 4), END, *text[10:]]
    inputs |= {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.int64)}
    moved = {name: value.to(model.device) for name, value in inputs.items()}
    moved["pixel_values_videos"] = moved["pixel_values_videos"].to(model.dtype)
    return moved


def clock(run: Callable[[], Any], repeats: int) -> tuple[float, float, Any]:
    """Median milliseconds, half the range, and the last result, after one warm-up run."""
    run()
    times, result = [], None
    for _ in range(repeats):
        _wait()
        start = time.perf_counter()
        result = run()
        _wait()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times), (max(times) - min(times)) / 2, result


class Timestamps:
    """A streamer that records when each token arrives; the first entry is the prompt."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def put(self, value: Any) -> None:
        self.seconds.append(time.perf_counter())

    def end(self) -> None: ...


def seconds_per_token(model: Any, inputs: dict[str, Any]) -> float:
    """Seconds per token after the first."""
    timestamps = Timestamps()
    model.generate(**dict(inputs), max_new_tokens=NEW_TOKENS, do_sample=False, streamer=timestamps)
    assert len(timestamps.seconds) == NEW_TOKENS + 1
    return (timestamps.seconds[-1] - timestamps.seconds[1]) / (NEW_TOKENS - 1)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@torch.no_grad()
def measure(model: Any, frames: int, repeats: int) -> list[dict[str, Any]]:
    """One row per method and fraction of tokens, all tokens first."""
    family, prompt_inputs = backend_of(model), prompt(model, frames)
    encode, spread, encoded = clock(lambda: encode_visuals(family, model, prompt_inputs), repeats)
    cells = encoded["video"].visuals[0].grid.cells
    rows = []
    jobs = [("full", 1.0)] + [(name, fraction) for fraction in FRACTIONS[1:] for name in ("token_dynamics", "uniform")]
    for name, fraction in jobs:
        keep = max(1, round(fraction * cells))
        pipeline = as_pipeline("" if name == "full" else f"{name}(keep={keep})", model)
        reduce, reduce_spread, reduced = clock(
            lambda pipeline=pipeline: reduce_visuals(family, model, pipeline, prompt_inputs, encoded), repeats
        )
        splice, _, edited = clock(
            lambda reduced=reduced: edit_prompts(family, model, prompt_inputs, encoded, reduced), repeats
        )
        inputs = edited.inputs

        def read(inputs: dict[str, Any] = inputs) -> Any:
            return model(**inputs, use_cache=True, logits_to_keep=1)

        prefill, prefill_spread, out = clock(read, repeats)
        memory = peak_memory(read, model.device)
        stored = [part for layer in cache_of(out).layers for part in (layer.keys, layer.values)]
        cache = sum(part.numel() * part.element_size() for part in stored)
        further = statistics.median(seconds_per_token(model, inputs) for _ in range(max(1, repeats // 2) + 1))
        rows.append(
            {
                "method": name, "tokens": keep, "kept, %": 100 * keep / cells, "encode, ms": encode, "encode ±": spread,
                "reduce, ms": reduce, "reduce ±": reduce_spread, "splice, ms": splice, "prefill, ms": prefill,
                "prefill ±": prefill_spread,
                "first token, ms": encode + reduce + splice + prefill, "reduce / encode, %": 100 * reduce / encode,
                "token, ms": 1000 * further, "cache, MiB": cache / 2**20,
                "peak, MiB": memory / 2**20,
            }
        )  # fmt: skip
        print({k: round(v, 2) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    return rows


@torch.no_grad()
def masking(model: Any, frames: int, repeats: int) -> list[dict[str, Any]]:
    """Keeping the same tokens by a mask over the full prompt, and by removing the others."""
    family, prompt_inputs = backend_of(model), prompt(model, frames)
    encoded = encode_visuals(family, model, prompt_inputs)
    cells = encoded["video"].visuals[0].grid.cells
    rows = []
    for fraction in (0.25, 0.1, 0.01):
        keep = max(1, round(fraction * cells))
        both = []
        for spec in (f"uniform(keep={keep})", ""):
            reduced = reduce_visuals(family, model, as_pipeline(spec, model), prompt_inputs, encoded)
            both.append(
                (
                    reduced["video"],
                    edit_prompts(family, model, prompt_inputs, encoded, reduced, positions="keep").inputs,
                )
            )
        (few, removed), (_, full) = both
        survivors = few[0].tokens.cell[0]
        positions = encoded["video"].columns[0][:cells]
        mask = full["attention_mask"].clone()
        mask[0, positions] = 0
        mask[0, positions[survivors]] = 1
        masked = {**full, "attention_mask": mask}
        times = {
            name: clock(lambda inputs=inputs: model(**inputs, logits_to_keep=1).logits, repeats)
            for name, inputs in (("removed", removed), ("masked", masked), ("all", full))
        }
        difference = (times["removed"][2] - times["masked"][2]).abs().max()
        row: dict[str, Any] = {"kept, %": 100 * keep / cells} | {f"{n}, ms": t[0] for n, t in times.items()}
        rows.append(row | {"largest difference of logits": float(difference)})
        print(rows[-1], flush=True)
    return rows


@torch.no_grad()
def batches(model: Any, frames: int, repeats: int) -> list[dict[str, Any]]:
    """Reducing the videos of a batch together and sequentially."""
    family, prompt_inputs = backend_of(model), prompt(model, frames)
    visual = encode_visuals(family, model, prompt_inputs)["video"].visuals[0]
    base = Tokens.from_cells(visual.features[None, : visual.grid.cells], visual.grid)
    rows = []
    for videos in (1, 4, 8):
        noise = torch.Generator().manual_seed(1)
        noisy: list[Tokens] = []
        for _ in range(videos):
            shift = torch.randn(base.features.shape, generator=noise).to(base.features)
            noisy.append(base.replace(features=base.features + 0.3 * base.features.std() * shift))
        for spec in ("token_dynamics(keep=32)", "tome(keep=0.1)"):
            pipeline = as_pipeline(spec, model)
            batch = collate(noisy)
            together = clock(lambda pipeline=pipeline, batch=batch: pipeline(batch).features, repeats)
            separate = clock(
                lambda pipeline=pipeline, noisy=noisy: [pipeline(video).features for video in noisy], repeats
            )
            rows.append({"method": spec, "videos": videos, "together, ms": together[0], "sequential, ms": separate[0]})
            print(rows[-1], flush=True)
    return rows


def main(gpu: bool) -> None:
    if gpu and not torch.cuda.is_available():
        sys.exit("--gpu requires a CUDA device")
    tables: dict[str, Any] = {}
    repeats = 5 if gpu else 3
    for name, make in ({"Qwen2.5-VL-3B": qwen25_vl_3b} if gpu else {"small": small}).items():
        model = make()
        for frames in (32, 128) if gpu else (8, 32):
            print(name, frames, flush=True)
            tables[f"{name}, {frames} frames"] = measure(model, frames, repeats)
        tables[f"{name}, masking instead of removing"] = masking(model, 32, repeats)
        tables[f"{name}, a batch together and sequentially"] = batches(model, 32 if gpu else 8, repeats)
        del model
    write(
        "video_llm_speed_gpu" if gpu else "video_llm_speed",
        "Time to the first token and memory, by visual tokens kept",
        "python benchmarks/video_llm_speed.py" + (" --gpu" if gpu else ""),
        tables,
        "Random weights; medians, with ± half the range. Peak: memory of the prefill in addition to weights and "
        "features.",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="use the config of a released model on a CUDA device")
    main(parser.parse_args().gpu)
