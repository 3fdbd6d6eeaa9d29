"""Number of operations of the prefill of a language model, from a formula."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LanguageModel:
    """The dimensions of a language model that determine the cost of its prefill.

    Attributes:
        name: name in tables.
        layers: number of decoder layers.
        width: channels of a token.
        hidden: channels inside the gated MLP.
        keys: channels of the keys, and of the values.
    """

    name: str
    layers: int
    width: int
    hidden: int
    keys: int


# The language model of LLaVA-OneVision-7B and LLaVA-Video-7B.
QWEN2_7B = LanguageModel("Qwen2-7B", layers=28, width=3584, hidden=18944, keys=512)
# Names of `fewtokens cost --llm`. Qwen2-0.5B is the language model of LLaVA-OneVision-0.5B and VQToken.
LANGUAGE_MODELS = {
    "qwen2-0.5b": LanguageModel("Qwen2-0.5B", layers=24, width=896, hidden=4864, keys=128),
    "qwen2.5-3b": LanguageModel("Qwen2.5-3B", layers=36, width=2048, hidden=11008, keys=256),
    "qwen2-7b": QWEN2_7B,
}


def prefill_gflops(tokens: int, model: LanguageModel = QWEN2_7B) -> float:
    """Returns the GFLOPs (2 per multiply-accumulate) of the prefill of `tokens` tokens with causal attention."""
    weights = model.width * (2 * model.width + 2 * model.keys + 3 * model.hidden)
    attention = tokens * (tokens + 1) // 2 * 2 * model.width
    return 2 * model.layers * (tokens * weights + attention) / 1e9
