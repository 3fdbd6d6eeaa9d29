"""Perceiver against loops."""

from __future__ import annotations

import numpy as np

from tests.helpers.resamplers import array, attention, build, compare, mlp, norm, places, run, video


def test_perceiver_against_loops():
    method, tokens = build("perceiver"), video()
    out = run(method, tokens)
    for b in range(2):
        where = array(tokens.positions[b])
        x = array(tokens.features[b]) + places(where, 3, 4, method.places)
        latents, looks = array(method.latents), np.zeros((5, len(x)))
        for layer in method.layers:
            asking = norm(latents, layer.norm_latents)
            mixed, look = attention(asking, np.concatenate([norm(x, layer.norm_seen), asking]), layer.attention, 2)
            looks += look[:, : len(x)] / 2
            latents = latents + mixed
            latents = latents + mlp(norm(latents, layer.norm_mlp), layer.mlp)
        compare(out, b, norm(latents, method.norm), looks, where)
