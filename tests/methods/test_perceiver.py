"""Perceiver against loops."""

from __future__ import annotations

import numpy as np

from tests.helpers.resamplers import (
    attention,
    build,
    compare,
    layer_norm,
    mlp,
    position_embedding,
    run_method,
    to_numpy,
    video,
)


def test_perceiver_against_loops():
    method, tokens = build("perceiver"), video()
    out = run_method(method, tokens)
    for b in range(2):
        positions = to_numpy(tokens.positions[b])
        x = to_numpy(tokens.features[b]) + position_embedding(positions, 3, 4, method.places)
        latents, weights = to_numpy(method.latents), np.zeros((5, len(x)))
        for layer in method.layers:
            queries = layer_norm(latents, layer.norm_latents)
            mixed, probs = attention(
                queries, np.concatenate([layer_norm(x, layer.norm_seen), queries]), layer.attention, 2
            )
            weights += probs[:, : len(x)] / 2
            latents = latents + mixed
            latents = latents + mlp(layer_norm(latents, layer.norm_mlp), layer.mlp)
        compare(out, b, layer_norm(latents, method.norm), weights, positions)
