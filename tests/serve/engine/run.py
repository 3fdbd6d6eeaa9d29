"""Runs vLLM in this process and prints its answers as JSON.

python -m tests.serve.engine.run '{"model": "FOLDER", "spec": "kmeans(keep=0.4)", "engine": {...}}'
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR",
}  # fmt: skip

from PIL import Image
from safetensors.torch import load_file

from tests.serve.engine.requests import REQUESTS, frames, image, metadata

TOKENS = 6


def mark_pruning() -> None:
    """The runner for CPUs does not read whether a model returns positions with its rows; that for GPUs does."""
    from vllm.model_executor.models.interfaces import supports_multimodal_pruning
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    stock = CPUModelRunner.load_model

    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        enabled = self.model_config.multimodal_config.is_multimodal_pruning_enabled()
        self.is_multimodal_pruning_enabled = enabled and supports_multimodal_pruning(self.get_model())

    CPUModelRunner.load_model = load_model


def record_hashes() -> list[str]:
    """Returns a list to which the identity of every video is added."""
    from fewtokens.serve.vllm.processor import FewTokensProcessor

    stock, seen = FewTokensProcessor._get_mm_hashes, []

    def get(self: Any, inputs: Any) -> Any:
        hashes = stock(self, inputs)
        seen.extend(hashes.get("video", []))
        return hashes

    FewTokensProcessor._get_mm_hashes = get
    return seen


def keep_all_rows() -> None:
    """Breaks the plugin: the encoder of Qwen2.5-VL returns all rows, but prompts have places for few."""
    from fewtokens.serve import contract
    from fewtokens.serve.vllm import qwen2_5_vl

    qwen2_5_vl.reduce = lambda spec, rows, grid, **cues: contract.reduce("uniform(keep=1.0)", rows, grid)


def prompt(request: dict[str, Any], texts: dict[str, str]) -> dict[str, Any]:
    text = request["text"]
    for name, placeholder in texts.items():
        text = text.replace(f"<{name}>", placeholder)
    data: dict[str, Any] = {}
    if request["videos"]:
        data["video"] = [(frames(*video), metadata(video[1])) for video in request["videos"]]
    if request.get("images"):
        data["image"] = [Image.fromarray(image(*shape)) for shape in request["images"]]
    return {"prompt": text, "multi_modal_data": data} if data else {"prompt": text}


def main(job: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        mark_pruning()
    hashes = record_hashes()
    if job.get("keep_all_rows"):
        keep_all_rows()
    defaults = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "max_num_seqs": 4, "seed": 0}
    llm = LLM(job["model"], limit_mm_per_prompt={"video": 2, "image": 1}, **(defaults | job["engine"]))
    hashes.clear()
    params = SamplingParams(temperature=0, max_tokens=TOKENS, logprobs=5, ignore_eos=True)
    if "prompt_embeds" in job:
        prompts = [{"prompt_embeds": rows} for _, rows in sorted(load_file(job["prompt_embeds"]).items())]
    else:
        prompts = [prompt(REQUESTS[index], job["texts"]) for index in job["requests"]]
    start = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - start
    answers = [
        {
            "prompt": list(output.prompt_token_ids or ()),
            "tokens": list(output.outputs[0].token_ids),
            "logprobs": [{str(k): v.logprob for k, v in step.items()} for step in output.outputs[0].logprobs],
        }
        for output in outputs
    ]
    return {"answers": answers, "hashes": hashes, "seconds": seconds}


if __name__ == "__main__":
    print("RESULT " + json.dumps(main(json.loads(sys.argv[1]))))
