"""What few tokens cost and save in a language model: token counts, retention, operations, TokDense.

The measures of Token Dynamics / VQToken (arXiv 2503.16980, section 4 and table 1). A retention means nothing without
its denominator, so K, N, the frames and whether the grid was pooled are always reported together.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fewtokens.core import registry
from fewtokens.core.files import read_json
from fewtokens.core.grid import Grid
from fewtokens.core.method import Method
from fewtokens.core.pipeline import Pipeline
from fewtokens.core.plain import conform
from fewtokens.core.tokens import Tokens
from fewtokens.profiling.operations import count_operations
from fewtokens.profiling.prefill import LANGUAGE_MODELS, LanguageModel, prefill_gflops

# Complexity of a module in the paper's table: n input tokens, m output tokens, d channels, L layers of the model.
MODULE_COMPLEXITY = {
    "full": "0",
    "random": "O(n^2 d)", "uniform": "O(n^2 d)", "evs": "O(n^2 d)", "dtd": "O(n^2 d)", "vidcom2": "O(n^2 d)",
    "tome": "O(n^2 d)", "tome_video": "O(n^2 d)", "tempme": "O(n^2 d)", "merge_windows": "O(n^2 d)",
    "downsample": "O(n d)", "mean_pool": "O(n d)", "fewer_frames": "O(n d)", "dynamic_pool": "O(n d)",
    "kmeans": "O((n + m^2) d)", "token_dynamics": "O((n + m^2) d)",
}  # fmt: skip


@dataclass(frozen=True)
class TokenCost:
    """The cost of one chain of methods on one video.

    Attributes:
        spec: the chain; "full" keeps all tokens.
        tokens, cells: K and N; `retention` is K / N. If K depends on the video, it is measured on noise.
        frames: frames of the grid. pooled: whether the grid was pooled before the methods.
        module: complexity of the module in the paper's table, if the table contains it. llm: complexity of the
            language model.
        module_gflops: measured operations, 2 for each multiply-accumulate, including the iterations of clustering
            (which the table does not count).
        prefill_gflops: operations of the language model on visual and text tokens.
        accuracy: in %, or None if unknown. tokdense: accuracy / K.
    """

    spec: str
    tokens: int
    cells: int
    frames: int
    pooled: bool
    module: str
    llm: str
    module_gflops: float
    prefill_gflops: float
    accuracy: float | None = None

    @property
    def retention(self) -> float:
        return self.tokens / self.cells

    @property
    def tokdense(self) -> float | None:
        return None if self.accuracy is None else tok_dense(self.accuracy, self.tokens)

    def row(self) -> dict[str, Any]:
        """All attributes as plain values."""
        return {
            "spec": self.spec, "tokens": self.tokens, "cells": self.cells, "retention": self.retention,
            "frames": self.frames, "pooled": self.pooled, "module_complexity": self.module,
            "module_gflops": self.module_gflops, "llm_complexity": self.llm, "prefill_gflops": self.prefill_gflops,
            "accuracy": self.accuracy, "tokdense": self.tokdense,
        }  # fmt: skip


def tok_dense(accuracy: float, tokens: float) -> float:
    """Accuracy in % per token that the language model receives.

    It rewards extreme reduction, so report it together with the accuracy.

    Raises:
        ValueError: `tokens` is not positive.
    """
    if tokens <= 0:
        raise ValueError(f"TokDense requires at least one token, got {tokens}")
    return accuracy / tokens


def token_cost(
    spec: str,
    grid: Grid,
    model: LanguageModel,
    *,
    text: int = 0,
    pooled: bool = False,
    accuracy: float | None = None,
    seed: int = 0,
) -> TokenCost:
    """Measures the cost of a chain on one video of noise with the channels of the language model.

    Args:
        spec: methods that need no cue other than text; "full" or "" keeps all tokens.
        grid: grid of the encoder.
        model: the language model.
        text: number of text tokens in the prompt.
        pooled: whether the grid was pooled; copied into the result.
        accuracy: in %, measured elsewhere; copied into the result.
        seed: random seed of the noise.

    Raises:
        ValueError: an unknown method, one that needs cues of an encoder, or one of another stage.
    """
    full = spec.strip() in ("", "full")
    methods: list[Method] = [] if full else registry.build(spec, dim=model.dim)
    for method in methods:
        if method.stage == "llm":
            raise ValueError(
                f"{method.name} acts inside the language model; cost counts only methods before the language model, so "
                "remove it from the spec"
            )
        if needs := set(getattr(method, "needs", ())) - {"text"}:
            raise ValueError(
                f"{method.name} needs {' and '.join(sorted(needs))} of an encoder, but cost runs methods on random "
                "features without an encoder, so it cannot count this method; use bench to measure it"
            )
    remaining, operations = grid.cells, 0.0
    if methods:
        generator = torch.Generator().manual_seed(seed)
        tokens = Tokens.from_cells(torch.randn(1, grid.cells, model.dim, generator=generator), grid)
        cues = {"text": torch.randn(1, max(1, text), model.dim, generator=generator)}
        outputs: list[Tokens] = []
        operations = 2 * count_operations(lambda: outputs.append(Pipeline(methods).eval()(tokens, **cues))).giga("macs")
        remaining = int(outputs[0].count[0])
    name = "full" if full else methods[-1].name
    return TokenCost(
        "full" if full else spec,
        remaining,
        grid.cells,
        grid.T,
        pooled,
        MODULE_COMPLEXITY.get(name, "see its cost"),
        "O(n^2 d L)" if full else "O(m^2 d L)",
        operations,
        prefill_gflops(remaining + text, model),
        accuracy,
    )


def language_model(name: str | Path) -> LanguageModel:
    """Returns the shape of a language model.

    Args:
        name: a known name, or a folder with the config.json of a language model or video language model.

    Raises:
        ValueError: neither a known name nor such a folder, or a config that lacks a size.
    """
    if str(name).lower() in LANGUAGE_MODELS:
        return LANGUAGE_MODELS[str(name).lower()]
    path = Path(name) / "config.json"
    if not path.is_file():
        raise ValueError(f"{name}: must be a folder with a config.json or one of {', '.join(LANGUAGE_MODELS)}")
    config = read_json(path, dict[str, Any])
    config = conform(config.get("text_config") or config, dict[str, Any], f"{path}: text_config")

    def size(key: str, default: int | None = None) -> int:
        if config.get(key) is None and default is None:
            raise ValueError(f"{path}: {key} is missing, so the cost of the prefill is unknown")
        value = conform(default if config.get(key) is None else config[key], int, f"{path}: {key}")
        if value < 1:
            raise ValueError(f"{path}: {key} must be at least 1, got {value}")
        return value

    heads, width = size("num_attention_heads"), size("hidden_size")
    keys = size("num_key_value_heads", heads) * size("head_dim", width // heads)
    return LanguageModel(str(name), size("num_hidden_layers"), width, size("intermediate_size"), keys)
