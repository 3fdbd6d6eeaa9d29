"""Small learned resamplers in float64, and NumPy versions of their layers."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from fewtokens.core import registry
from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from tests.helpers.clips import clip

C, D = 8, 6
SPECS = {
    "perceiver": "perceiver(5, num_layers=2, heads=2)",
    "qformer": "qformer(5, num_layers=3, heads=2)",
    "attentional_pool": "attentional_pool(5, hidden=7)",
    "learned_queries": "learned_queries(5, num_layers=2, heads=2)",
    "token_turing": "token_turing(5, memory=6, read=3, num_layers=2, heads=2)",
    "llama_vid": f"llama_vid('5/frame', text_dim={D})",
    "ppllava": f"ppllava((2, 2, 3), tau=0.3, text_dim={D})",
    "storm": "storm(2, spatial=2, state=3, num_layers=2)",
    "pvc": "pvc(2, repeat=3, num_layers=2, heads=2)",
    "vista_llama": "vista_llama('3/frame', num_layers=2, heads=2)",
    "langdc": "langdc(4, frames=2, side=2, vocabulary=9, num_layers=2, heads=2)",
    "b_vllm": f"b_vllm(3, tokens=4, text_dim={D}, num_layers=2, heads=2)",
    "iva": "iva(2, hidden=7)",
    "linvt": f"linvt(5, text_dim={D}, selected=14, scales=(1, 3), num_layers=2, heads=2)",
}
GUIDED = [name for name, spec in SPECS.items() if "text_dim" in spec]


def build(name: str):
    torch.manual_seed(0)
    (method,) = registry.build(SPECS[name], dim=C)
    for parameter in method.parameters():
        if parameter.ndim > 1 and not bool(parameter.any()):  # zero at the start, so that the method is simpler
            nn.init.normal_(parameter, std=0.3)
    return method.double().eval()


def video(T: int = 4, H: int = 3, W: int = 4, B: int = 2, seed: int = 0, lengths=None) -> Tokens:
    return clip(T, H, W, C, B, seed=seed, lengths=lengths).to(torch.float64)


def text_features(B: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(B, 3, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run_method(method, tokens: Tokens, text: torch.Tensor | None = None) -> Tokens:
    text = text_features(tokens.B) if text is None else text
    return method(tokens, **({"text": text} if "text" in method.needs else {}))


def to_numpy(parameter: torch.Tensor) -> np.ndarray:
    return parameter.detach().double().numpy()


def linear(x: np.ndarray, layer: nn.Linear) -> np.ndarray:
    y = x @ to_numpy(layer.weight).T
    return y if layer.bias is None else y + to_numpy(layer.bias)


def layer_norm(x: np.ndarray, layer: nn.LayerNorm) -> np.ndarray:
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * to_numpy(layer.weight) + to_numpy(layer.bias)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    parts = np.exp(x - x.max(axis, keepdims=True))
    return parts / parts.sum(axis, keepdims=True)


def mlp(x: np.ndarray, layers: nn.Sequential) -> np.ndarray:
    return linear(gelu(linear(x, layers[0])), layers[2])


def attention(x: np.ndarray, context: np.ndarray, layer, heads: int) -> tuple[np.ndarray, np.ndarray]:
    """Attention of one sample, computed separately for each head and query; returns outputs and mean weights."""
    q, k, v = linear(x, layer.query), linear(context, layer.key), linear(context, layer.value)
    d = q.shape[1] // heads
    mixed, weights = np.zeros_like(q), np.zeros((len(x), len(context)))
    for h in range(heads):
        part = slice(h * d, (h + 1) * d)
        for m in range(len(x)):
            probs = softmax(np.array([q[m, part] @ k[n, part] / math.sqrt(d) for n in range(len(context))]))
            mixed[m, part] = sum(probs[n] * v[n, part] for n in range(len(context)))
            weights[m] += probs / heads
    return linear(mixed, layer.out), weights


def position_embedding(positions: np.ndarray, H: int, W: int, layer) -> np.ndarray:
    rows = []
    for t, y, x in positions:
        angles = [c * 10_000 ** (-k / 8) for c in (t, (y + 0.5) * 16 / H, (x + 0.5) * 16 / W) for k in range(8)]
        rows.append([*np.sin(angles), *np.cos(angles)])
    return np.array(rows) @ to_numpy(layer.layer.weight).T


def summary(x: np.ndarray, layer) -> np.ndarray:
    return softmax(mlp(layer_norm(x, layer.norm), layer.mlp), 0).T


def compare(out: Tokens, b: int, features: np.ndarray, weights: np.ndarray, positions: np.ndarray) -> None:
    """Compares features and attribution after sorting the expected ones by mean time, row and column."""
    weights = weights / weights.sum(1, keepdims=True)
    mean = np.round(weights @ positions * 1024)
    order = np.lexsort((mean[:, 2], mean[:, 1], mean[:, 0]))
    np.testing.assert_allclose(to_numpy(out.features[b]), features[order], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(to_numpy(out.cell_weights()[b]), weights[order], rtol=1e-4, atol=1e-6)


def split_frames(tokens: Tokens) -> list[Tokens]:
    _, H, W = tokens.grid.shape
    return [Tokens.from_cells(frame, Grid(1, H, W)) for frame in tokens.features.split(H * W, 1)]
