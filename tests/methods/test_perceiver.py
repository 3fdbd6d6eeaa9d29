"""Perceiver against loops."""

from __future__ import annotations

import numpy as np

from tests.helpers.resamplers import array, attention, build, compare, mlp, norm, places, run, video


def test_perceiver_against_loops():
    method, tokens = build("perceiver"), video()
    out = run(method, tokens)
    for b in range(2):
        positions = array(tokens.positions[b])
        x = array(tokens.features[b]) + places(positions, 3, 4, method.places)
        latents, weights = array(method.latents), np.zeros((5, len(x)))
        for layer in method.layers:
            queries = norm(latents, layer.norm_latents)
            mixed, probs = attention(queries, np.concatenate([norm(x, layer.norm_seen), queries]), layer.attention, 2)
            weights += probs[:, : len(x)] / 2
            latents = latents + mixed
            latents = latents + mlp(norm(latents, layer.norm_mlp), layer.mlp)
        compare(out, b, norm(latents, method.norm), weights, positions)
