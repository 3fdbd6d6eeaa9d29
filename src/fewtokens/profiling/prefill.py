"""Number of operations of the prefill of a language model, from a formula."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class LanguageModel:
    """The dimensions of a language model that determine the cost of its prefill.

    Attributes:
        name: name in tables.
        layers: number of decoder layers.
        dim: channels of a token.
        mlp_dim: channels inside the gated MLP.
        kv_dim: channels of the keys, and of the values.
    """

    name: str
    layers: int
    dim: int
    mlp_dim: int
    kv_dim: int


# The language model of LLaVA-OneVision-7B and LLaVA-Video-7B.
QWEN2_7B = LanguageModel("Qwen2-7B", layers=28, dim=3584, mlp_dim=18944, kv_dim=512)
# Names of `fewtokens cost --llm`. Qwen2-0.5B is the language model of LLaVA-OneVision-0.5B and VQToken.
LANGUAGE_MODELS = {
    "qwen2-0.5b": LanguageModel("Qwen2-0.5B", layers=24, dim=896, mlp_dim=4864, kv_dim=128),
    "qwen2.5-3b": LanguageModel("Qwen2.5-3B", layers=36, dim=2048, mlp_dim=11008, kv_dim=256),
    "qwen2-7b": QWEN2_7B,
    "qwen2.5-7b": replace(QWEN2_7B, name="Qwen2.5-7B"),
}


def prefill_gflops(tokens: int, model: LanguageModel = QWEN2_7B) -> float:
    """Returns the GFLOPs (2 per multiply-accumulate) of the prefill of `tokens` tokens with causal attention."""
    weights = model.dim * (2 * model.dim + 2 * model.kv_dim + 3 * model.mlp_dim)
    attention = tokens * (tokens + 1) // 2 * 2 * model.dim
    return 2 * model.layers * (tokens * weights + attention) / 1e9
