"""Operations that a language model needs to read visual tokens, by a formula."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LanguageModel:
    """The shape of a language model, for the cost of reading visual tokens.

    Attributes:
        name: what tables say.
        layers, width, hidden, keys: decoder layers, channels, channels inside the gated MLP, channels of the keys.
    """

    name: str
    layers: int
    width: int
    hidden: int
    keys: int


# Qwen2-7B, inside LLaVA-OneVision-7B and LLaVA-Video-7B.
QWEN2_7B = LanguageModel("Qwen2-7B", layers=28, width=3584, hidden=18944, keys=512)
# By the names that `fewtokens cost --llm` knows; Qwen2-0.5B is inside LLaVA-OneVision-0.5B and VQToken.
LANGUAGE_MODELS = {
    "qwen2-0.5b": LanguageModel("Qwen2-0.5B", layers=24, width=896, hidden=4864, keys=128),
    "qwen2.5-3b": LanguageModel("Qwen2.5-3B", layers=36, width=2048, hidden=11008, keys=256),
    "qwen2-7b": QWEN2_7B,
}


def prefill_gflops(tokens: int, model: LanguageModel = QWEN2_7B) -> float:
    """1e9 floating-point operations (2 for each multiply-accumulate) to read `tokens` tokens, causal attention."""
    weights = model.width * (2 * model.width + 2 * model.keys + 3 * model.hidden)
    attention = tokens * (tokens + 1) // 2 * 2 * model.width
    return 2 * model.layers * (tokens * weights + attention) / 1e9
