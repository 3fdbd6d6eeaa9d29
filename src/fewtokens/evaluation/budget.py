"""What few tokens cost and save in a language model: counts, shares, operations, TokDense.

The measures of Token Dynamics / VQToken (arXiv 2503.16980, section 4 and table 1). A share means nothing without what
it is a share of, so K, N, the frames and whether the grid was pooled are always told together.
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
from fewtokens.profiling.operations import count
from fewtokens.profiling.prefill import LANGUAGE_MODELS, LanguageModel, prefill_gflops

# What the paper's table gives for a module on n tokens, m of them kept, of d channels; L layers of the language model.
MODULE_COMPLEXITY = {
    "full": "0",
    "random": "O(n^2 d)", "uniform": "O(n^2 d)", "evs": "O(n^2 d)", "dtd": "O(n^2 d)", "vidcom2": "O(n^2 d)",
    "tome": "O(n^2 d)", "tome_video": "O(n^2 d)", "tempme": "O(n^2 d)", "merge_windows": "O(n^2 d)",
    "downsample": "O(n d)", "mean_pool": "O(n d)", "fewer_frames": "O(n d)", "dynamic_pool": "O(n d)",
    "kmeans": "O((n + m^2) d)", "token_dynamics": "O((n + m^2) d)",
}  # fmt: skip


@dataclass(frozen=True)
class TokenCost:
    """Of one chain of methods on one video.

    Attributes:
        spec: "full" keeps every token.
        tokens, cells: K and N; `share` = K / N. Of a length that depends on the video: for features of noise.
        frames: of the grid; `pooled`: whether it was pooled before.
        module: complexity of the module as the paper's table has it, where that table names its kind; llm: of the
            language model.
        module_gflops: counted from what runs, 2 for each multiply-accumulate, iterations of clustering included (the
            table leaves them out).
        prefill_gflops: of the language model, visual and text tokens.
        accuracy: in %, where it is known; tokdense: accuracy / K.
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
    def share(self) -> float:
        return self.tokens / self.cells

    @property
    def tokdense(self) -> float | None:
        return None if self.accuracy is None else tok_dense(self.accuracy, self.tokens)

    def row(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "spec": self.spec, "tokens": self.tokens, "cells": self.cells, "retention": self.share,
            "frames": self.frames, "pooled": self.pooled, "module_complexity": self.module,
            "module_gflops": self.module_gflops, "llm_complexity": self.llm, "prefill_gflops": self.prefill_gflops,
            "accuracy": self.accuracy, "tokdense": self.tokdense,
        }  # fmt: skip


def tok_dense(accuracy: float, tokens: float) -> float:
    """Accuracy in % for each token that the language model is given. It rewards keeping next to nothing: never read it
    without the accuracy.

    Raises:
        ValueError: no token.
    """
    if tokens <= 0:
        raise ValueError(f"TokDense divides by the tokens kept, got {tokens}")
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
    """Counts what a chain costs on one video of noise, in the width of the language model.

    Args:
        spec: methods that need no cue but text; "full" or "" keeps every token.
        grid: the cells that the encoder gives.
        text: tokens of the prompt beside the video's.
        pooled: only told along.
        accuracy: measured elsewhere, in %.

    Raises:
        ValueError: an unknown method, one with cues of an encoder, or one of another stage.
    """
    everything = spec.strip() in ("", "full")
    methods: list[Method] = [] if everything else registry.build(spec, dim=model.width)
    for method in methods:
        if needs := set(getattr(method, "needs", ())) - {"text"}:
            raise ValueError(f"{method.name} needs {' and '.join(sorted(needs))}, of which noise has none")
    kept, operations = grid.cells, 0.0
    if methods:
        generator = torch.Generator().manual_seed(seed)
        tokens = Tokens.from_cells(torch.randn(1, grid.cells, model.width, generator=generator), grid)
        words = {"text": torch.randn(1, max(1, text), model.width, generator=generator)}
        out: list[Tokens] = []
        operations = 2 * count(lambda: out.append(Pipeline(methods).eval()(tokens, **words))).by("macs")
        kept = int(out[0].count[0])
    name = "full" if everything else methods[-1].name
    return TokenCost(
        "full" if everything else spec,
        kept,
        grid.cells,
        grid.T,
        pooled,
        MODULE_COMPLEXITY.get(name, "see its cost"),
        "O(n^2 d L)" if everything else "O(m^2 d L)",
        operations,
        prefill_gflops(kept + text, model),
        accuracy,
    )


def language_model(name: str | Path) -> LanguageModel:
    """The shape of a language model: a known name, or a folder with its config.json (also of a video language model).

    Raises:
        ValueError: neither, or a config without the sizes.
    """
    if str(name).lower() in LANGUAGE_MODELS:
        return LANGUAGE_MODELS[str(name).lower()]
    path = Path(name) / "config.json"
    if not path.is_file():
        raise ValueError(f"{name}: no folder with a config.json; known names: {', '.join(LANGUAGE_MODELS)}")
    said = read_json(path, dict[str, Any])
    said = conform(said.get("text_config") or said, dict[str, Any], f"{path}: text_config")

    def size(key: str, otherwise: int | None = None) -> int:
        if said.get(key) is None and otherwise is None:
            raise ValueError(f"{path}: says no {key}, so the cost of reading tokens is unknown")
        value = conform(otherwise if said.get(key) is None else said[key], int, f"{path}: {key}")
        if value < 1:
            raise ValueError(f"{path}: {key} must be at least 1, not {value}")
        return value

    heads, width = size("num_attention_heads"), size("hidden_size")
    keys = size("num_key_value_heads", heads) * size("head_dim", width // heads)
    return LanguageModel(str(name), size("num_hidden_layers"), width, size("intermediate_size"), keys)
