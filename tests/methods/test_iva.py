"""IVA's temporal tokens: weighted means before training, and causal after it."""

from __future__ import annotations

import numpy as np
import torch

from fewtokens.core.grid import Grid
from fewtokens.core.tokens import Tokens
from fewtokens.methods.learned.iva import Iva
from tests.helpers.clips import clip
from tests.helpers.resamplers import (
    C,
    attention,
    build,
    layer_norm,
    mlp,
    run_method,
    summary,
    to_numpy,
    video,
)  # fmt: skip


def test_against_loops():
    method, tokens = build("iva"), video(lengths=[4, 2])
    out = run_method(method, tokens).check()
    assert out.count.tolist() == [4, 2]
    for b, T in enumerate([4, 2]):
        frames = to_numpy(tokens.features[b, : T * 12]).reshape(T, 12, C)
        maps = np.stack([summary(frame, method.summary)[0] for frame in frames])
        x = np.stack([weights @ frame for weights, frame in zip(maps, frames, strict=True)])
        for t in range(T):
            angles = [t * 10_000 ** (-k / 16) for k in range(16)]
            x[t] += to_numpy(method.time.weight) @ np.array([*np.sin(angles), *np.cos(angles)])
        for layer in method.layers:
            y = layer_norm(x, layer.norm1)
            heads = layer.attention.heads
            x = x + np.concatenate([attention(y[t : t + 1], y[: t + 1], layer.attention, heads)[0] for t in range(T)])
            x = x + mlp(layer_norm(x, layer.norm2), layer.mlp)
        np.testing.assert_allclose(to_numpy(out.features[b, :T]), x, rtol=1e-5, atol=1e-7)
        weights = to_numpy(out[b].cell_weights()[0]).reshape(T, -1, 12)
        np.testing.assert_allclose(weights[range(T), range(T)], maps, rtol=1e-5, atol=1e-7)


def test_the_start_is_a_weighted_mean():
    torch.manual_seed(0)
    method, tokens = Iva(dim=C).eval(), clip(5, 4, 6, C)
    out = method(tokens)
    weights = method.summary(tokens.features.reshape(10, 24, C))
    expected = (weights @ tokens.features.reshape(10, 24, C)).reshape(2, 5, C)
    torch.testing.assert_close(out.features, expected)


def test_later_frames_change_nothing():
    method, tokens = build("iva"), video(T=6, B=1)
    out = run_method(method, tokens).features
    for t in range(6):
        x = tokens.features.reshape(6, 12, C).clone()
        x[t] = -x[t]
        changed = run_method(method, tokens.replace(features=x.reshape(1, -1, C))).features
        assert torch.equal((out - changed).abs().amax(2)[0] > 1e-9, torch.arange(6) >= t)
    short = Tokens.from_cells(tokens.features[:, :36], Grid(3, 3, 4))
    torch.testing.assert_close(run_method(method, short).features, out[:, :3])
